"""What was measured, as a table: each figure beside its reference, its target and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One line of the table; `met` is None where there is no target."""

    what: str
    value: str
    reference: str = ""
    target: str = ""
    met: bool | None = None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "**missed**", None: ""}[self.met]

    def __str__(self) -> str:
        return f"{self.what}: {self.value}  {self.verdict.strip('*')}".rstrip()


@dataclass(frozen=True)
class Section:
    """Figures that belong together, with what one must know to read them."""

    title: str
    notes: str
    figures: Sequence[Figure]


HEAD = "| what | measured | reference | target | |\n|---|---|---|---|---|"


def write_results(path: Path, *, title: str, preface: str, sections: Sequence[Section]) -> None:
    parts = [f"# {title}", preface, *(_section(section) for section in sections)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _section(section: Section) -> str:
    rows = [
        f"| {each.what} | {each.value} | {each.reference} | {each.target} | {each.verdict} |"
        for each in section.figures
    ]
    return "\n".join([f"## {section.title}", "", section.notes, "", HEAD, *rows])
