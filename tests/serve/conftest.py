"""A scripted core, and a door over it with the usual settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serve.client import Running, running
from serve.stand_in import StandIn


@pytest.fixture
def core() -> Iterator[StandIn]:
    core = StandIn()
    yield core
    core.close()


@pytest.fixture
def door(core: StandIn) -> Iterator[Running]:
    with running(core) as door:
        yield door
