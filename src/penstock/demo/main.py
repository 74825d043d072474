"""The demonstration: weeks of history, then payments decided at accelerated time."""

from __future__ import annotations

import io
import math
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import pyarrow as pa
from rich.console import Console

from penstock.demo.driver import Driver, Schedule
from penstock.demo.generator import History, Size, generate, payments_table, reports_table
from penstock.demo.live import Summary, closing
from penstock.demo.service import Service
from penstock.demo.tally import Tally
from penstock.errors import SettingsError
from penstock.settings import read_settings

# The example, linked here, so that an installed package has it too.
APP = Path(__file__).with_name("payments.py")
# The longest reach of a window of the example, and a little.
WARM_DAYS = 38
BATCH_ROWS = 20_000
ARROW = "application/vnd.apache.arrow.stream"
SHOW_SECONDS = 0.25
PAYMENTS_MAX = 10_000_000


def run_demo(
    *,
    seconds: float = 60.0,
    rate: float = 2_000.0,
    customers: int = 2_000,
    terminals: int = 4_000,
    warm_days: int = WARM_DAYS,
    seed: int = 1,
    app: Path | None = None,
    data: Path | None = None,
    console: Console | None = None,
) -> int:
    """Start a service, drive it for `seconds` at `rate` payments a second, show what it decides.

    `rate` is an average: the payments' own time runs faster, with its days and nights. Without
    `data` the service writes to a folder that is removed at the end. Ctrl-C ends it early. Returns
    the exit status.

    Raises `PenstockError` where the service cannot start or answer.
    """
    size = Size(customers, terminals)
    _check(
        seconds=seconds, rate=rate, customers=customers, terminals=terminals, warm_days=warm_days
    )
    _check_doors()
    count = _count(seconds, rate)
    console = console or Console()
    with ExitStack() as stack:
        try:
            folder = data or _temporary_folder(stack)
            log = folder / "service.txt"
            service = Service(app or APP, data=folder / "data", log=log)
            console.print(
                f"{rate:,.15g} generated payments a second for {seconds:,.15g} s, each decided and "
                "on disk before its answer; Ctrl-C ends it"
            )
            start = time.monotonic()
            stack.enter_context(service)
            # While the service starts, the history is made; while that is loaded, the requests.
            warm, live = histories(count, warm_days=warm_days, seed=seed, size=size)
            driver = stack.enter_context(Driver(Schedule(live, seconds, service.port)))
            service.wait_until_ready()
            took = time.monotonic() - start
            console.print(f"the service is ready on port {service.port} after {took:.1f} s")
            load_history(service, warm, console)
        except KeyboardInterrupt:
            console.print("ended before the first payment")
            return 0
        tally, elapsed = _watch(driver, Tally(live.payments), console)
    console.print(closing(tally, elapsed))
    return 0


def histories(
    count: int, *, warm_days: int, seed: int, size: Size, now: int | None = None
) -> tuple[History, History]:
    """What was before, and the last `count` payments until `now` with the reports of their time."""
    per_day = size.customers * size.payments_per_day
    # A few payments fall outside their day, and random days differ: one day more than needed.
    days = warm_days + math.ceil(1.1 * count / per_day) + 1
    whole = generate(seed=seed, days=days, now=now or time.time_ns() // 1_000, size=size)
    start = int(whole.payments.paid_at[-min(count, len(whole.payments))])
    return whole.before(start), whole.since(start)


def load_history(service: Service, history: History, console: Console) -> None:
    """Enter a history by the topics' doors: it fills the windows, and nothing is decided."""
    start = time.monotonic()
    tables = {
        "payments": payments_table(history.payments),
        "fraud_reports": reports_table(history.reports),
    }
    with console.status("loading the history"):
        for topic, table in tables.items():
            for body in _arrow_bodies(table):
                service.post(f"/v1/topics/{topic}/events", body, content_type=ARROW)
    console.print(
        f"loaded the weeks before: {len(history.payments):,} payments and "
        f"{len(history.reports):,} fraud reports in {time.monotonic() - start:.1f} s"
    )


def _watch(driver: Driver, tally: Tally, console: Console) -> tuple[Tally, float]:
    """Send all, count and show the answers, until the end or Ctrl-C; also the seconds it took."""
    start = time.monotonic()
    with _interrupting(driver), Summary(tally, console) as summary:
        driver.start()
        for answers in driver.answers(SHOW_SECONDS):
            tally.add(answers)
            summary.show()
    return tally, time.monotonic() - start


@contextmanager
def _interrupting(driver: Driver) -> Iterator[None]:
    """Let the first Ctrl-C stop the driver, so that all that was answered is counted."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        driver.stop()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _temporary_folder(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-")))


def _arrow_bodies(table: pa.Table) -> Iterator[bytes]:
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        body = io.BytesIO()
        with pa.ipc.new_stream(body, table.schema) as stream:
            stream.write_batch(batch)
        yield body.getvalue()


def _check(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise SettingsError(f"{name} is {value}, and must be a number above 0")


def _check_doors() -> None:
    """The service that it starts has the settings of the environment and of the folder, as any other has."""
    if read_settings({})["tls_certificate"] is not None:
        raise SettingsError(
            "the demonstration speaks HTTP without TLS, and tls_certificate is set", hint="run it in another folder"
        )


def _count(seconds: float, rate: float) -> int:
    """How many payments to send, at least one. All are made before the first is sent, so there is a bound."""
    count = seconds * rate
    if count > PAYMENTS_MAX:
        raise SettingsError(
            f"{seconds:g} s at {rate:g} payments a second are more than {PAYMENTS_MAX:,} payments",
            hint="give fewer --seconds, or a lower --rate",
        )
    return max(1, round(count))
