"""From a URL to what is asked of whom."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote, unquote_to_bytes

from penstock.runtime.gate import (
    DECIDE,
    DECIDE_MANY,
    DRY_RUN,
    DRY_RUN_MANY,
    EVENTS_ARROW,
    EVENTS_JSON,
    EVENTS_NDJSON,
    LOOKUP,
    POSITION,
    RETRY,
)
from penstock.serve.access import Caller
from penstock.serve.answers import Refusal
from penstock.serve.deadlines import Deadline
from penstock.serve.settings import Doors, DoorSettings, PolicyDoor, TopicDoor

# Media types of bodies, as positions in a route's `kinds`.
JSON, NDJSON, ARROW = 0, 1, 2

MEDIA_TYPES = {
    b"application/json": JSON,
    b"application/x-ndjson": NDJSON,
    b"application/vnd.apache.arrow.stream": ARROW,
}

LATENCY_BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
LATENCY_BOUNDS_NS = tuple(int(bound * 1e9) for bound in LATENCY_BOUNDS_S)


class Route:
    """One thing that can be asked for, and what has been counted of it.

    `kinds` gives the core's kind of request by the body's media type, None where it takes no such.
    """

    __slots__ = (
        "deadline",
        "fallback_on_overload",
        "kinds",
        "labels",
        "latency_counts",
        "latency_ns",
        "method",
        "name",
        "overloaded",
        "repeats",
        "statuses",
        "target",
        "timed_out",
    )

    def __init__(
        self,
        name: str,
        *,
        policy: str = "",
        topic: str = "",
        method: bytes = b"POST",
        kinds: tuple[int | None, ...] = (None, None, None),
        target: int = 0,
        deadline: Deadline | None = None,
        fallback_on_overload: bool = False,
    ) -> None:
        self.name = name
        # As Prometheus wants them.
        named = {"route": name, "policy": policy, "topic": topic}
        self.labels = ",".join(f'{key}="{value}"' for key, value in named.items() if value)
        self.method = method
        self.kinds = kinds
        self.target = target
        self.deadline = deadline
        self.fallback_on_overload = fallback_on_overload
        self.statuses: defaultdict[int, int] = defaultdict(int)
        self.latency_counts = [0] * (len(LATENCY_BOUNDS_NS) + 1)
        self.latency_ns = 0
        self.repeats = 0
        self.timed_out = 0
        self.overloaded = 0

    def observe(self, status: int, waited_ns: int, repeat: int) -> None:
        """Count an answer of the core's."""
        self.statuses[status] += 1
        self.latency_counts[bisect_left(LATENCY_BOUNDS_NS, waited_ns)] += 1
        self.latency_ns += waited_ns
        if repeat:
            self.repeats += 1


class Routes:
    """All routes of a door."""

    def __init__(self, doors: Doors, settings: DoorSettings) -> None:
        # What has no deadline of its own waits this long for the core.
        patience = Deadline(settings.answer_s)
        self.metrics = Route("metrics", method=b"GET")
        self.healthz = Route("healthz", method=b"GET")
        self.readyz = Route("readyz", method=b"GET")
        self.refused = Route("refused")  # what reached no route
        self.decide = {door.name: _decide(door) for door in doors.policies}
        self.dry_run = {door.name: _dry_run(door, patience) for door in doors.policies}
        self.decisions = {door.name: _decisions(door, patience) for door in doors.policies}
        self.events = {door.name: _events(door, patience) for door in doors.topics}
        self.deadletters = {door.name: _deadletters(door, patience) for door in doors.topics}
        self.positions = Route("positions", kinds=(POSITION, None, None), deadline=patience)
        self._usual = self._usual_urls()

    def __iter__(self) -> Iterator[Route]:
        yield from (self.metrics, self.healthz, self.readyz, self.refused, self.positions)
        for group in (self.decide, self.dry_run, self.decisions, self.events, self.deadletters):
            yield from group.values()

    def deadlines(self) -> list[Deadline]:
        return list(dict.fromkeys(route.deadline for route in self if route.deadline is not None))

    def find(self, url: bytes, caller: Caller) -> tuple[Route, bytes]:
        """The route of a URL, and the id in it where there is one. Raises `Refusal`.

        Whether the caller may ask it comes first: the names of policies and topics are for those who may.
        """
        usual = self._usual.get(url)
        if usual is not None:
            caller.check(usual.name)
            return usual, b""
        path, _, query = _origin_form(url).partition(b"?")
        match path.split(b"/"):
            case [b"", b"metrics" | b"healthz" | b"readyz" as name]:
                caller.check(name.decode())
                return self._usual[b"/" + name], b""
            case [b"", b"v1", b"positions"]:
                caller.check("positions")
                _check_query(query, ())
                return self.positions, b""
            case [b"", b"v1", b"policies", name, b"decide"]:
                caller.check("decide")
                routes = self.dry_run if _wants_dry_run(query) else self.decide
                return _named(routes, name, "policy"), b""
            case [b"", b"v1", b"decisions", name, text] if text:
                caller.check("decisions")
                _check_query(query, ())
                return _named(self.decisions, name, "policy"), _decoded_id(text)
            case [b"", b"v1", b"topics", name, b"events"]:
                caller.check("events")
                _check_query(query, ())
                return _named(self.events, name, "topic"), b""
            case [b"", b"v1", b"topics", name, b"deadletters"]:
                caller.check("deadletters")
                _check_query(query, ())
                return _named(self.deadletters, name, "topic"), b""
        caller.check_known()
        raise Refusal("unknown_path", "there is nothing at this path")

    def _usual_urls(self) -> dict[bytes, Route]:
        local = (self.metrics, self.healthz, self.readyz)
        return {
            **{f"/{route.name}".encode(): route for route in local},
            **{f"/v1/policies/{name}/decide".encode(): r for name, r in self.decide.items()},
            **{f"/v1/policies/{name}/decide?dry_run=1".encode(): r for name, r in self.dry_run.items()},
            **{f"/v1/topics/{name}/events".encode(): r for name, r in self.events.items()},
        }


def _decide(door: PolicyDoor) -> Route:
    return Route(
        "decide",
        policy=door.name,
        kinds=(DECIDE, DECIDE_MANY, None),
        target=door.index,
        deadline=Deadline(door.within_s),
        fallback_on_overload=door.on_overload == "fallback",
    )


def _dry_run(door: PolicyDoor, patience: Deadline) -> Route:
    kinds = (DRY_RUN, DRY_RUN_MANY, None)
    return Route("dry_run", policy=door.name, kinds=kinds, target=door.index, deadline=patience)


def _decisions(door: PolicyDoor, patience: Deadline) -> Route:
    kinds, target = (LOOKUP, LOOKUP, LOOKUP), door.index
    return Route("decisions", policy=door.name, method=b"GET", kinds=kinds, target=target, deadline=patience)


def _events(door: TopicDoor, patience: Deadline) -> Route:
    kinds = (EVENTS_JSON, EVENTS_NDJSON, EVENTS_ARROW)
    return Route("events", topic=door.name, kinds=kinds, target=door.index, deadline=patience)


def _deadletters(door: TopicDoor, patience: Deadline) -> Route:
    return Route("deadletters", topic=door.name, kinds=(None, RETRY, None), target=door.index, deadline=patience)


def media_type(value: bytes) -> int | None:
    """The media type that a `Content-Type` names; None if bodies cannot have it."""
    name, *parameters = value.lower().split(b";")
    if any(p.strip().startswith(b"charset=") and b"utf-8" not in p for p in parameters):
        return None
    return MEDIA_TYPES.get(name.strip())


def _origin_form(url: bytes) -> bytes:
    """Clients of a proxy name the whole URL (RFC 9112, 3.2.2)."""
    if url.startswith((b"http://", b"https://")):
        return b"/" + url.split(b"/", 3)[3] if url.count(b"/") > 2 else b"/"
    return url


def _named(routes: dict[str, Route], name: bytes, what: str) -> Route:
    route = routes.get(unquote(name))
    if route is None:
        raise Refusal(f"unknown_{what}", f"there is no such {what}", known=sorted(routes))
    return route


def _wants_dry_run(query: bytes) -> bool:
    value = _check_query(query, ("dry_run",)).get("dry_run", "0")
    if value not in ("0", "1"):
        raise Refusal("unknown_parameter", "dry_run is 1 or 0", parameter="dry_run")
    return value == "1"


def _check_query(query: bytes, known: tuple[str, ...]) -> dict[str, str]:
    """A misspelt `dry_run` must not decide for real, so that an unknown parameter is refused."""
    parameters = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    if any(name not in known for name, _ in parameters):
        wanted = f"takes only {', '.join(known)}" if known else "takes no parameters"
        raise Refusal("unknown_parameter", f"this path {wanted}")
    return dict(parameters)


def _decoded_id(text: bytes) -> bytes:
    decoded = unquote_to_bytes(text)
    try:
        decoded.decode()
    except UnicodeDecodeError:
        raise Refusal("malformed_request", "the id in the path is not UTF-8") from None
    return decoded
