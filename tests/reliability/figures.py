"""What a test of this folder measured, as JSON under build/reliability/: the documents quote it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "build" / "reliability"


def write_figures(name: str, **figures: Any) -> Path:
    """Write build/reliability/<name>.json: the figures, with the machine and the date."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"
    target = FOLDER / f"{name}.json"
    date = datetime.now(UTC).date().isoformat()
    target.write_text(json.dumps({"date": date, "machine": machine, **figures}, indent=2) + "\n")
    return target


def percentile(values: Sequence[float], share: float) -> float:
    """
    >>> percentile([3.0, 1.0, 2.0], 0.5), percentile([3.0, 1.0, 2.0], 0.99)
    (2.0, 3.0)
    """
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
