"""A policy: what is decided about each event of a topic, by which rules, within what time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from penstock.process.streams import FeatureSet

if TYPE_CHECKING:
    import polars as pl

Score = Callable[["pl.DataFrame"], "pl.Series"]
OnOverload = Literal["refuse", "fallback"]
OnFull = Literal["refuse", "fallback"]


@dataclass(frozen=True)
class Model:
    """A user's function over whole batches: a frame of fields and features in, one number a row out."""

    name: str
    version: str
    function: Score


@dataclass(frozen=True)
class Policy:
    """A named decision. `within_us` is the deadline; at it the caller is told `fallback`."""

    name: str
    features: FeatureSet
    rules: Path
    model: Model | None
    within_us: int
    fallback: str
    on_overload: OnOverload
    on_full: OnFull
