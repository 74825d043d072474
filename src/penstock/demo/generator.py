"""Generated payments: customers, terminals, three kinds of fraud, and reports days later.

The method is that of the *Fraud Detection Handbook*, chapter 3. Customers and terminals lie on a
square; a customer pays at the terminals within a radius, with a mean amount and a frequency of
their own. Three patterns of fraud are laid over:

    1  the amount is above a threshold
    2  the terminal is compromised: all its payments for 28 days
    3  the card is stolen: a third of its payments for 14 days, at five times the amount

Most frauds are reported days later. Every day is drawn from (seed, what is drawn, day), so a day is
the same whatever is generated around it, and patterns that began before the first day are already
there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US

SQUARE = 100.0
GENUINE, ABOVE_THRESHOLD, TERMINAL_COMPROMISED, CARD_STOLEN = range(4)
THRESHOLD_CENTS = 220_00
COMPROMISED_DAYS = 28
STOLEN_DAYS = 14
STOLEN_SHARE = 1 / 3
STOLEN_FACTOR = 5

# Per day, as shares: the book draws 2 of 10,000 terminals and 3 of 5,000 customers.
COMPROMISED_PER_DAY = 2 / 10_000
STOLEN_PER_DAY = 3 / 5_000

REPORTED_SHARE = 0.9
REPORT_DAYS = (1.0, 7.0)

# The square's quarters. A few acquirers do not say the country.
COUNTRIES = ("NL", "BE", "FR", "DE")
COUNTRY_UNKNOWN_SHARE = 0.02


@dataclass(frozen=True)
class Size:
    """How much there is to generate; the defaults are the book's."""

    customers: int = 5_000
    terminals: int = 10_000
    payments_per_day: float = (
        2.0  # a customer's, on average; each has a rate between 0 and twice this
    )
    radius: float = 5.0


@dataclass(frozen=True)
class Payments:
    """Payments in the order of their time, one array per column.

    `scenario` is the truth: it is sent to nobody.
    """

    number: Ints  # within the day
    day: Ints
    customer: Ints
    terminal: Ints
    country: Ints  # index into COUNTRIES, -1 where unknown
    cents: Ints
    paid_at: Ints  # microseconds since 1970, UTC
    scenario: Ints

    def __len__(self) -> int:
        return len(self.paid_at)

    def __getitem__(self, rows: slice | Ints | NDArray[np.bool_]) -> Self:
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def ids(self) -> list[str]:
        return _ids("p", self.day, self.number)


@dataclass(frozen=True)
class Reports:
    """Fraud reports in the order of their time."""

    number: Ints  # of the payment reported, within its day
    day: Ints
    terminal: Ints
    reported_at: Ints  # microseconds since 1970, UTC

    def __len__(self) -> int:
        return len(self.reported_at)

    def __getitem__(self, rows: slice | Ints | NDArray[np.bool_]) -> Self:
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def ids(self) -> list[str]:
        return _ids("r", self.day, self.number)


@dataclass(frozen=True)
class History:
    """What happened: the payments, and the reports known by its end."""

    payments: Payments
    reports: Reports

    def before(self, time: int) -> History:
        return History(
            self.payments[self.payments.paid_at < time],
            self.reports[self.reports.reported_at < time],
        )

    def since(self, time: int) -> History:
        return History(
            self.payments[self.payments.paid_at >= time],
            self.reports[self.reports.reported_at >= time],
        )


def generate(*, seed: int, days: int, now: int, size: Size | None = None) -> History:
    """A history of whole UTC days, the last of them the one before `now` (microseconds, UTC)."""
    end = now // DAY_US * DAY_US
    world = settle(seed, size or Size())
    parts = [world.payments_of(day, end - (days - day) * DAY_US) for day in range(days)]
    reports = _joined([world.reports_of(day, payments) for day, payments in enumerate(parts)])
    known = np.flatnonzero(reports.reported_at < end)
    order = known[np.argsort(reports.reported_at[known], kind="stable")]
    return History(_joined(parts), reports[order])


@dataclass(frozen=True)
class World:
    """Who is there: the customers with their habits, and the terminals within each one's reach."""

    seed: int
    mean_cents: Floats  # per customer
    payments_per_day: Floats  # per customer
    reach_start: Ints  # per customer, into `reach`; one more at the end
    reach: Ints  # terminals
    country: Ints  # per terminal

    def payments_of(self, day: int, midnight: int) -> Payments:
        rng = self._rng("payments", day)
        customer, second = self._moments(rng)
        terminal = self._terminals(rng, customer)
        cents = self._amounts(rng, customer)
        scenario, cents = self._frauds(rng, day, customer, terminal, cents)
        unknown = rng.random(len(customer)) < COUNTRY_UNKNOWN_SHARE
        return Payments(
            number=np.arange(len(customer)),
            day=np.full(len(customer), day),
            customer=customer,
            terminal=terminal,
            country=np.where(unknown, -1, self.country[terminal]),
            cents=cents,
            paid_at=midnight + second * SECOND_US,
            scenario=scenario,
        )

    def reports_of(self, day: int, payments: Payments) -> Reports:
        """Most frauds of a day, each reported one to seven days later."""
        frauds = payments[payments.scenario != GENUINE]
        rng = self._rng("reports", day)
        reported = frauds[rng.random(len(frauds)) < REPORTED_SHARE]
        delay = (rng.uniform(*REPORT_DAYS, size=len(reported)) * 86_400).astype(np.int64)
        reported_at = reported.paid_at + delay * SECOND_US
        return Reports(reported.number, reported.day, reported.terminal, reported_at)

    def _moments(self, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Who pays when: a Poisson number each, around noon, in the order of time."""
        counts = rng.poisson(self.payments_per_day)
        customer = np.repeat(np.arange(len(counts)), counts)
        second = rng.normal(43_200, 20_000, size=len(customer))
        inside = (second > 0) & (second < 86_400)
        whole: Ints = second[inside].astype(np.int64)
        order = np.argsort(whole, kind="stable")
        return customer[inside][order], whole[order]

    def _terminals(self, rng: np.random.Generator, customer: Ints) -> Ints:
        start, end = self.reach_start[customer], self.reach_start[customer + 1]
        return self.reach[rng.integers(start, end)]

    def _amounts(self, rng: np.random.Generator, customer: Ints) -> Ints:
        mean = self.mean_cents[customer]
        drawn = rng.normal(mean, mean / 2)
        redrawn = rng.uniform(0, 2 * mean)
        return np.round(np.where(drawn < 0, redrawn, drawn)).astype(np.int64)

    def _frauds(
        self, rng: np.random.Generator, day: int, customer: Ints, terminal: Ints, cents: Ints
    ) -> tuple[Ints, Ints]:
        """The scenario of each payment and its amount; later patterns overwrite, as in the book."""
        scenario = np.where(cents > THRESHOLD_CENTS, ABOVE_THRESHOLD, GENUINE)
        scenario[np.isin(terminal, self._compromised(day))] = TERMINAL_COMPROMISED
        stolen = np.isin(customer, self._stolen(day)) & (rng.random(len(customer)) < STOLEN_SHARE)
        scenario[stolen] = CARD_STOLEN
        return scenario, np.where(stolen, cents * STOLEN_FACTOR, cents)

    def _compromised(self, day: int) -> Ints:
        terminals = len(self.country)
        return self._struck("compromised", day, COMPROMISED_DAYS, terminals, COMPROMISED_PER_DAY)

    def _stolen(self, day: int) -> Ints:
        customers = len(self.mean_cents)
        return self._struck("stolen", day, STOLEN_DAYS, customers, STOLEN_PER_DAY)

    def _struck(self, what: str, day: int, days: int, among: int, share: float) -> Ints:
        """Those drawn on this day or on one of the `days` - 1 before."""
        draws = [
            _drawn(self._rng(what, past), among, share) for past in range(day - days + 1, day + 1)
        ]
        return np.unique(np.concatenate(draws))

    def _rng(self, what: str, day: int) -> np.random.Generator:
        return _rng(self.seed, what, day)


def settle(seed: int, size: Size) -> World:
    """Place the customers and terminals, and find who reaches what."""
    rng = _rng(seed, "world", 0)
    customer_places = rng.uniform(0, SQUARE, size=(size.customers, 2))
    terminal_places = rng.uniform(0, SQUARE, size=(size.terminals, 2))
    reach_start, reach = _reach(customer_places, terminal_places, size.radius)
    return World(
        seed=seed,
        mean_cents=rng.uniform(5_00, 100_00, size=size.customers),
        payments_per_day=rng.uniform(0, 2 * size.payments_per_day, size=size.customers),
        reach_start=reach_start,
        reach=reach,
        country=(terminal_places // (SQUARE / 2)).astype(np.int64) @ np.array([1, 2]),
    )


def payments_table(payments: Payments) -> pa.Table:
    """As the topic `payments` takes them."""
    import pyarrow as pa

    countries = pa.array(COUNTRIES)
    known = pa.array(payments.country, mask=payments.country < 0)
    return pa.table(
        {
            "payment_id": pa.array(payments.ids()),
            "card": _named("c", payments.customer),
            "terminal": _named("t", payments.terminal),
            "country": countries.take(known),
            "amount": decimals(payments.cents),
            "paid_at": pa.array(payments.paid_at, pa.timestamp("us", tz="UTC")),
        }
    )


def reports_table(reports: Reports) -> pa.Table:
    """As the topic `fraud_reports` takes them."""
    import pyarrow as pa

    return pa.table(
        {
            "report_id": pa.array(reports.ids()),
            "terminal": _named("t", reports.terminal),
            "reported_at": pa.array(reports.reported_at, pa.timestamp("us", tz="UTC")),
        }
    )


def payments_json(payments: Payments) -> Iterator[bytes]:
    """One JSON object per payment."""
    rows = zip(
        payments.ids(),
        _names("c", payments.customer),
        _names("t", payments.terminal),
        payments.country.tolist(),
        payments.cents.tolist(),
        _times(payments.paid_at),
        strict=True,
    )
    spelled = {index: f'"{name}"' for index, name in enumerate(COUNTRIES)} | {-1: "null"}
    for payment_id, card, terminal, country, cents, paid_at in rows:
        yield (
            f'{{"payment_id":"{payment_id}","card":"{card}","terminal":"{terminal}",'
            f'"country":{spelled[country]},"amount":"{cents // 100}.{cents % 100:02d}",'
            f'"paid_at":"{paid_at}Z"}}'
        ).encode()


def reports_json(reports: Reports) -> Iterator[bytes]:
    """One JSON object per report."""
    rows = zip(
        reports.ids(), _names("t", reports.terminal), _times(reports.reported_at), strict=True
    )
    for report_id, terminal, reported_at in rows:
        yield (
            f'{{"report_id":"{report_id}","terminal":"{terminal}","reported_at":"{reported_at}Z"}}'
        ).encode()


STREAMS = ("world", "payments", "reports", "compromised", "stolen")
# Seeds must not be negative, and patterns are drawn from before the first day.
DAY_ZERO = 1_000


def _rng(seed: int, what: str, day: int) -> np.random.Generator:
    return np.random.default_rng((seed, STREAMS.index(what), DAY_ZERO + day))


def _drawn(rng: np.random.Generator, among: int, share: float) -> Ints:
    return rng.choice(among, size=rng.binomial(among, share), replace=False)


def _reach(customers: Floats, terminals: Floats, radius: float) -> tuple[Ints, Ints]:
    """Each customer's terminals within the radius, or the nearest where none is."""
    by_x = np.argsort(terminals[:, 0], kind="stable")
    x, y = terminals[by_x].T
    # Sorted by x, so that a customer is compared only with the terminals of a vertical strip.
    first = np.searchsorted(x, customers[:, 0] - radius)
    last = np.searchsorted(x, customers[:, 0] + radius)
    reached = []
    for (here_x, here_y), strip in zip(customers, map(slice, first, last), strict=True):
        near = (x[strip] - here_x) ** 2 + (y[strip] - here_y) ** 2 < radius**2
        reached.append(by_x[strip][near] if near.any() else _nearest(here_x, here_y, terminals))
    start = np.concatenate([[0], np.cumsum([len(each) for each in reached])])
    return start, np.concatenate(reached)


def _nearest(x: float, y: float, terminals: Floats) -> Ints:
    squares = (terminals[:, 0] - x) ** 2 + (terminals[:, 1] - y) ** 2
    return np.array([squares.argmin()])


Columns = TypeVar("Columns", Payments, Reports)


def _joined(parts: list[Columns]) -> Columns:
    names = [f.name for f in fields(parts[0])]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return type(parts[0])(**columns)


def _ids(prefix: str, days: Ints, numbers: Ints) -> list[str]:
    pairs = zip(days.tolist(), numbers.tolist(), strict=True)
    return [f"{prefix}{day:04d}-{number:06d}" for day, number in pairs]


def _names(prefix: str, numbers: Ints) -> list[str]:
    return [f"{prefix}{number:05d}" for number in numbers.tolist()]


def _named(prefix: str, numbers: Ints) -> pa.Array:
    """`_names` as an array, each distinct one spelled once."""
    import pyarrow as pa

    distinct, rows = np.unique(numbers, return_inverse=True)
    return pa.array(_names(prefix, distinct)).take(pa.array(rows))


def _times(microseconds: Ints) -> list[str]:
    times = microseconds.astype("datetime64[us]")
    return [str(time) for time in np.datetime_as_string(times, unit="s")]


def decimals(cents: Ints) -> pa.Array:
    """decimal(12, 2) from whole cents: 128 bits each, the sign carried into the upper half."""
    import pyarrow as pa

    halves = np.stack([cents, cents >> 63], axis=1)
    buffers = [None, pa.py_buffer(np.ascontiguousarray(halves))]
    return pa.Array.from_buffers(pa.decimal128(12, 2), len(cents), buffers)
