"""Penstock: real-time pipelines on an event stream.

What happens is written once to a durable event log; from there one Python pipeline decides about each event while
its sender still waits, and remembers what the next decision needs.
"""

from penstock.errors import (
    DamagedError,
    DefinitionError,
    FullError,
    InputError,
    LockedError,
    LogError,
    PenstockError,
    SettingsError,
)
from penstock.event import Event, decimal, event_time, id
from penstock.runtime.pipeline import Pipeline

__version__ = "0.1.0"

__all__ = [
    "DamagedError",
    "DefinitionError",
    "Event",
    "FullError",
    "InputError",
    "LockedError",
    "LogError",
    "PenstockError",
    "Pipeline",
    "SettingsError",
    "decimal",
    "event_time",
    "id",
]
