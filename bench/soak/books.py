"""What a soak's service has acknowledged, as its caller knows it: an offset for each payment that was decided."""

from __future__ import annotations

import json
from array import array
from datetime import UTC, datetime, timedelta
from pathlib import Path

CARDS, TERMINALS = 5_000, 2_000
# What spreads payments over cards: Knuth's multiplicative hash.
SPREAD = 2_654_435_761
OPEN, TOLD = -1, -2
OFFSET = b'"offset":'


class Books:
    """Payments are numbered as they become due; all of one follows from its number, so that it can be sent again."""

    def __init__(self, begins: datetime, rate: float, *, first: int = 0) -> None:
        self.begins = begins
        self.rate = rate
        self.first = first  # the id of number 0
        self.places = array("q")  # by number: the offset, or that it is open, or that its caller was told the fallback
        self.fallbacks = 0
        self.refused = 0  # answers of 429 and 503: sent again
        self.findings: list[str] = []

    def payment(self, number: int) -> bytes:
        spread = number * SPREAD % (1 << 32)
        card, terminal = spread % CARDS, spread // CARDS % TERMINALS
        paid_at = self.begins + timedelta(seconds=number / self.rate)
        return (
            f'{{"payment_id":{self.first + number},"card":"c{card}","terminal":"t{terminal}",'
            f'"amount":"{spread % 50_000 / 100:.2f}","paid_at":"{paid_at.isoformat()}"}}'
        ).encode()

    def enter(self, number: int) -> None:
        """It is about to be sent for the first time."""
        assert number == len(self.places)
        self.places.append(OPEN)

    def note(self, number: int, status: int, body: bytes) -> bool:
        """Take in an answer; whether it was one. Of 429 and 503 it was none: to be sent again."""
        if status in (429, 503):
            self.refused += 1
            return False
        if status != 200:
            self.findings.append(f"{number} got {status}")
        elif b'"timed_out":true' in body:
            self.fallbacks += 1
            self.places[number] = TOLD
        else:
            self._place(number, body)
        return True

    def _place(self, number: int, body: bytes) -> None:
        start = body.find(OFFSET) + len(OFFSET)
        offset = int(body[start : body.find(b",", start)])
        if self.places[number] not in (OPEN, offset):
            self.findings.append(f"{number} was at offset {self.places[number]}, and is now said to be at {offset}")
        self.places[number] = offset

    def acknowledged(self) -> int:
        return sum(1 for place in self.places if place >= 0)

    def compare(self, numbers: list[int], lines: bytes) -> int:
        """Whether retries in one body were told the same again; how many of them."""
        for number, line in zip(numbers, lines.splitlines(), strict=True):
            answer = json.loads(line)
            if answer.get("offset") != self.places[number]:
                told = answer.get("offset", answer.get("error"))
                self.findings.append(f"{number} was told offset {self.places[number]}, and by a retry {told}")
        return len(numbers)

    def check_export(self, file: Path) -> int:
        """Whether what the log still has is what was acknowledged, each once; how many rows were compared."""
        import polars as pl

        rows = pl.read_parquet(file, columns=["_offset", "payment_id"])
        offsets, numbers = rows["_offset"], rows["payment_id"]
        if offsets.n_unique() != len(rows) or len(rows) != offsets[-1] - offsets[0] + 1:
            self.findings.append("the topic's offsets are not dense")
        told = pl.DataFrame({"payment_id": range(len(self.places)), "told": self.places}).filter(
            pl.col("told") >= offsets[0]
        )
        if numbers.n_unique() != len(rows):
            self.findings.append(f"{len(rows) - numbers.n_unique()} payments are in the topic twice")
        found = told.join(rows, on="payment_id", how="left").filter(pl.col("_offset").ne_missing(pl.col("told")))
        self.findings += [f"{number} is not where it was acknowledged" for number in found["payment_id"][:10]]
        return len(told)


def now() -> datetime:
    return datetime.now(UTC)
