"""What the terminal shows: a summary that lives while the demonstration runs, and the last one."""

from __future__ import annotations

import time
from collections import deque
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from penstock.demo.tally import PATTERNS, Tally, amount

REFRESH_SECONDS = 0.33
LINE_SECONDS = 5.0
RATE_SECONDS = 2.0
STYLES = {"approve": "green", "review": "yellow", "decline": "red"}
RULES_SHOWN = 7
NEXT = "Serve it yourself: penstock run examples/payments.py --data DIR (docs/start.md)"
# Left free at the right: a terminal writes ^C there, and on the next line it would stay for ever.
CTRL_C_CHARACTERS = 3


class Summary:
    """Shows a tally as it grows: a panel on a terminal, a line now and then elsewhere."""

    def __init__(self, tally: Tally, console: Console) -> None:
        self._tally = tally
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._start = self._shown = time.monotonic()
        self._past: deque[tuple[float, int]] = deque([(self._start, 0)])

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self) -> None:
        """Draw what has changed, if it is time."""
        now = time.monotonic()
        every = REFRESH_SECONDS if self._console.is_terminal else LINE_SECONDS
        if now < self._shown + every:
            return
        self._shown = now
        rate = self._rate(now)
        if self._console.is_terminal:
            width = self._console.width - CTRL_C_CHARACTERS
            self._live.update(panel(self._tally, now - self._start, rate, width), refresh=True)
        else:
            self._console.print(line(self._tally, now - self._start, rate), soft_wrap=True)

    def _rate(self, now: float) -> float:
        """Events per second lately."""
        self._past.append((now, self._tally.events))
        while len(self._past) > 2 and self._past[1][0] < now - RATE_SECONDS:
            self._past.popleft()
        (start, before), (end, after) = self._past[0], self._past[-1]
        return (after - before) / max(end - start, 1e-9)


def panel(tally: Tally, seconds: float, rate: float, width: int) -> RenderableType:
    title = f"penstock · {seconds:,.0f} s · {tally.events:,} events · {rate:,.0f}/s"
    upper = Table.grid(padding=(0, 6, 0, 0))
    upper.add_row(_figures(tally), _rules(tally))
    # In all at most 24 lines of 80 characters.
    return Panel(Group(upper, Text(), _patterns(tally), Text(), _recent(tally)), title=title, width=width)


def line(tally: Tally, seconds: float, rate: float) -> str:
    p50, p99 = tally.percentiles_ms(50, 99)
    outcomes = ", ".join(f"{outcome} {count:,}" for outcome, count in _by_count(tally.outcomes))
    return (
        f"{seconds:4.0f} s  {tally.events:,} events  {rate:,.0f}/s  {outcomes}  "
        f"frauds caught {tally.all_caught.count:,} of {tally.all_frauds.count:,}  "
        f"p50 {p50:.2f} ms  p99 {p99:.2f} ms"
    )


def closing(tally: Tally, seconds: float) -> RenderableType:
    """What is printed at the end."""
    headline = f"{tally.events:,} events in {seconds:,.1f} s"
    parts = _figures(tally), Text(), _patterns(tally), Text(), _rules(tally), Text()
    return Group(headline, *parts, NEXT)


def _figures(tally: Tally) -> Table:
    p50, p99 = tally.percentiles_ms(50, 99)
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_row("payments decided", f"{tally.decided:,}")
    table.add_row("fraud reports taken", f"{tally.reports:,}")
    for outcome, count in _by_count(tally.outcomes):
        share = count / max(1, tally.decided)
        table.add_row(Text(outcome, STYLES.get(outcome, "")), f"{count:,} ({share:.2%})")
    if tally.timed_out:
        table.add_row("answered by the fallback", f"{tally.timed_out:,}")
    for status, count in sorted(tally.refused.items()):
        table.add_row(f"refused with {status}", f"{count:,}")
    table.add_row("false alarms", str(tally.alarms))
    table.add_row("answer p50", f"{p50:.2f} ms")
    table.add_row("answer p99", f"{p99:.2f} ms")
    return table


def _patterns(tally: Tally) -> Table:
    table = _table()
    for column in ("frauds", "caught", "of", "money caught", "of"):
        table.add_column(column, justify="left" if column == "frauds" else "right")
    parts = [(name, tally.caught[each], tally.frauds[each]) for each, name in PATTERNS.items()]
    for name, caught, all_ in [*parts, ("all", tally.all_caught, tally.all_frauds)]:
        counts = f"{caught.count:,}", f"{all_.count:,}"
        table.add_row(name, *counts, amount(caught.cents), amount(all_.cents))
    return table


def _rules(tally: Tally) -> Table:
    table = _table()
    table.add_column("deciding rule")
    table.add_column("payments", justify="right")
    for rule, count in _by_count(tally.rules)[:RULES_SHOWN]:
        table.add_row(rule, f"{count:,}")
    return table


def _recent(tally: Tally) -> Table:
    table = _table()
    for column in ("not approved lately", "amount", "outcome", "rules", "in truth"):
        table.add_column(column, justify="right" if column == "amount" else "left", no_wrap=True)
    for each in reversed(tally.recent):
        outcome = Text(each.outcome, STYLES.get(each.outcome, ""))
        truth = "fraud" if each.fraud else "genuine"
        table.add_row(each.payment, amount(each.cents), outcome, _reasons(each.rules), truth)
    return table


def _reasons(rules: tuple[str, ...]) -> str:
    """The deciding rule, and how many more fired."""
    return " ".join([*rules[:1], *([f"+ {len(rules) - 1}"] if len(rules) > 1 else [])])


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _by_count(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
