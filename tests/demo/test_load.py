"""The load client: what it is told is what was answered, whatever the size and the order."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from penstock.demo.load import closed_loop, open_loop, request, steady
from serve.client import running
from serve.stand_in import StandIn

DECIDE = "/v1/policies/authorise/decide"


def bodies() -> list[bytes]:
    """Small ones, and some whose answers come in many pieces."""
    sizes = [10, 5_000, 70_000, 400_000] + [20] * 60
    return [b"%d " % place + b"x" * size for place, size in enumerate(sizes)]


@pytest.mark.parametrize("connections", [1, 7, 200])
def test_each_request_is_sent_once_and_its_answer_told(connections: int) -> None:
    told: dict[int, bytes] = {}

    def on_answer(place: int, status: int, body: bytes, latency: float) -> None:
        assert status == 200 and latency > 0 and place not in told
        told[place] = json.loads(body)[2].encode()

    with closing(StandIn()) as core, running(core) as door:
        address = ("127.0.0.1", door.port)
        requests = [request(DECIDE, body) for body in bodies()]
        load = closed_loop(address, requests, connections=connections, on_answer=on_answer)
        assert [told[place] for place in range(len(requests))] == bodies()
        assert load.statuses == {200: len(requests)} and len(load.latencies) == len(requests)
        told.clear()
        due = steady(2_000, len(requests))
        load = open_loop(address, requests, due, connections=connections, on_answer=on_answer)
        assert [told[place] for place in range(len(requests))] == bodies()
        assert load.statuses == {200: len(requests)}


def test_statuses_are_counted_and_a_closed_connection_is_an_error() -> None:
    with closing(StandIn()) as core, running(core) as door:
        address = ("127.0.0.1", door.port)
        known, unknown = request(DECIDE, b"{}"), request("/nowhere", b"{}")
        load = closed_loop(address, [known, unknown, known], connections=2)
        assert load.statuses == {200: 2, 404: 1}
        with pytest.raises(ConnectionError):
            closed_loop(address, [b"no HTTP\r\n\r\n", known], connections=1)


def test_a_latency_counts_from_the_due_time() -> None:
    with closing(StandIn()) as core, running(core) as door:
        requests = [request(DECIDE, b"{}")] * 3
        # Due before the start: they wait from then on, however fast they are answered.
        load = open_loop(("127.0.0.1", door.port), requests, [-1.0, -0.5, 0.0], connections=1)
        assert load.latencies[0] > 1.0 and 0.5 < load.latencies[1] < load.latencies[0]
        assert load.latencies[2] < load.latencies[1]
