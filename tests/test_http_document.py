"""docs/http.yaml against a running service: each answer is documented at its path, with its headers and fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
import yaml

from disks import fill, fill_the_log, on, small_disk
from processes import (
    ARROW,
    DECIDE,
    EVENTS,
    JSON,
    NDJSON,
    ROOT,
    Answer,
    Service,
    patient_first,
    payment,
    running,
    succeed,
)
from serve.siege import exchange

DOCUMENT = yaml.safe_load((ROOT / "docs" / "http.yaml").read_text())
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
# Those that the core answers: the others are the door's own pages.
CORE = [(path, method) for path, method in OPERATIONS if path.startswith("/v1/")]
GUARDED = [(path, method) for path, method in OPERATIONS if DOCUMENT["paths"][path][method]["security"]]
WITH_BODY = [(path, method) for path, method in OPERATIONS if "requestBody" in DOCUMENT["paths"][path][method]]
PLAIN = "application/json"

Case = tuple[str, str, bytes | None, str, int]

# Headers of single answers; the others are HTTP's own, the same everywhere.
SPECIAL = {"WWW-Authenticate", "Penstock-Repeat", "Allow", "Retry-After"}

POSITION = {"consumer": "warehouse", "topic": "payments", "offset": 0}
LETTERS = "/v1/topics/payments/deadletters"
EVENTS_PATH, LETTERS_PATH = "/v1/topics/{topic}/events", "/v1/topics/{topic}/deadletters"
LOOKUP = "/v1/decisions/authorise/"


def text(*values: Any) -> bytes:
    return b"\n".join(value if isinstance(value, bytes) else json.dumps(value).encode() for value in values)


def asked(path: str) -> str:
    """A path of the document as it is asked for."""
    return path.format(policy="authorise", topic="payments", id="p1")


# Path, method, body, its type, and the answer's status; in this order, over one directory.
CASES: list[Case] = [
    (DECIDE, "POST", text(payment(1)), PLAIN, 200),
    (DECIDE, "POST", text(payment(1)), PLAIN, 200),  # a repeat
    (DECIDE, "POST", text(payment(1), payment(2), b"{"), NDJSON, 200),
    (DECIDE + "?dry_run=1", "POST", text(payment(3)), PLAIN, 200),
    (DECIDE + "?dry_run=2", "POST", text(payment(3)), PLAIN, 400),
    ("/v1/policies/other/decide", "POST", text(payment(3)), PLAIN, 404),
    (DECIDE, "POST", text(payment(1, amount="1.00")), PLAIN, 409),
    (DECIDE, "POST", b" " * 70_000, PLAIN, 413),
    (DECIDE, "POST", b"", ARROW, 415),
    (DECIDE, "POST", b"{", PLAIN, 422),
    (LOOKUP + "p1", "GET", None, PLAIN, 200),
    (LOOKUP + "p9", "GET", None, PLAIN, 404),
    (LOOKUP + "p1?a=1", "GET", None, PLAIN, 400),
    (EVENTS, "POST", text(payment(4)), PLAIN, 200),
    (EVENTS, "POST", text(payment(5), b"{"), NDJSON, 200),
    (EVENTS, "POST", text([1, payment(6)]), PLAIN, 200),
    (EVENTS, "POST", b"5", PLAIN, 422),
    (EVENTS, "POST", b"", ARROW, 422),
    ("/v1/topics/other/events", "POST", b"{}", PLAIN, 404),
    (LETTERS, "POST", text([0], payment(7)), NDJSON, 200),
    (LETTERS, "POST", text([0], b"{"), NDJSON, 200),
    (LETTERS, "POST", text([99], payment(7)), NDJSON, 422),
    ("/v1/positions", "POST", text(POSITION), PLAIN, 200),
    ("/v1/positions", "POST", text({**POSITION, "offset": -1}), PLAIN, 422),
    ("/v1/positions", "POST", b"", NDJSON, 415),
    ("/metrics", "GET", None, PLAIN, 200),
    ("/healthz", "GET", None, PLAIN, 200),
    ("/readyz", "GET", None, PLAIN, 200),
    (EVENTS, "POST", b" " * 70_000, PLAIN, 413),
    (EVENTS, "POST", b"", "text/plain", 415),
    ("/v1/topics/other/deadletters", "POST", text([0], payment(7)), NDJSON, 404),
    (LETTERS, "POST", b" " * 70_000, NDJSON, 413),
    (LETTERS, "POST", b"", PLAIN, 415),
    ("/v1/positions", "POST", b" " * 70_000, PLAIN, 413),
    *((asked(path) + "?a=1", method.upper(), b"" if method == "post" else None, PLAIN, 400) for path, method in CORE),
    *((asked(path), "PUT", None, PLAIN, 405) for path, _ in OPERATIONS),
]

# What a service on a full disk, and one whose log has been damaged under it, says.
FULL = [
    (DECIDE, "POST", text(payment(90)), PLAIN, 503),
    (EVENTS, "POST", text(payment(90)), PLAIN, 503),
    (LETTERS, "POST", text([0], payment(90)), NDJSON, 503),
    ("/v1/positions", "POST", text(POSITION), PLAIN, 503),
    ("/readyz", "GET", None, PLAIN, 503),
]
DAMAGED = [
    (DECIDE, "POST", text(payment(1)), PLAIN, 500),
    (LOOKUP + "p1", "GET", None, PLAIN, 500),
    (EVENTS, "POST", text(payment(1)), PLAIN, 200),  # the row is rejected
]

# Statuses that no request brings about in a service that is well, by their operations.
BUGS = "only a bug of ours is answered so"
UNSEEN = {
    ("/v1/decisions/{policy}/{id}", "503"): "the core has ended or stands still: tests/serve/test_deadlines.py",
    **{(path, "500"): BUGS for path in ("/metrics", "/healthz", "/readyz", "/v1/positions", EVENTS_PATH, LETTERS_PATH)},
}


def resolved(node: JSON) -> JSON:
    while "$ref" in node:
        words = node["$ref"].removeprefix("#/").split("/")
        node = DOCUMENT
        for word in words:
            node = node[word]
    return node


def documented(path: str) -> tuple[str, str]:
    """The path of the document that a request's is, and its method there."""
    for template, method in OPERATIONS:
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path.partition("?")[0]):
            return template, method
    raise AssertionError(f"{path} is not in the document")


TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": NoneType,
}  # fmt: skip
# All that the document says of values; a keyword beyond would be passed over.
KEYWORDS = {"type", "enum", "const", "required", "properties", "items", "oneOf", "allOf"}


def fits(schema: JSON, value: Any) -> bool:
    try:
        check_value(schema, value)
    except AssertionError:
        return False
    return True


def check_value(schema: JSON, value: Any) -> None:
    """A value is what its schema says: of its type, with all required fields and no other than the named ones."""
    schema = resolved(schema)
    assert set(schema) <= KEYWORDS | {"description", "examples"}, schema
    if "oneOf" in schema:
        assert sum(fits(each, value) for each in schema["oneOf"]) == 1, value
    if "type" in schema:
        kinds = [TYPES[name] for name in ([schema["type"]] if isinstance(schema["type"], str) else schema["type"])]
        assert any(isinstance(value, kind) for kind in kinds), value
        assert not isinstance(value, bool) or bool in kinds, value
    assert value in schema.get("enum", [value]) and value == schema.get("const", value), value
    parts = [resolved(part) for part in schema.get("allOf", [schema])]
    properties = {name: about for part in parts for name, about in part.get("properties", {}).items()}
    if isinstance(value, dict) and properties:
        assert {name for part in parts for name in part.get("required", [])} <= set(value) <= set(properties), value
        for name, inner in value.items():
            check_value(properties[name], inner)
    if isinstance(value, list):
        for inner in value:
            check_value(schema.get("items", {}), inner)


# What the lines of NDJSON are, which the document says in words.
LINE = {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("Decision", "Error")]}


def check(template: str, method: str, answer: Answer) -> None:
    """An answer is documented for its operation: status, headers, type and body."""
    response = resolved(DOCUMENT["paths"][template][method]["responses"][str(answer.status)])
    wanted = set(response.get("headers", {}))
    assert SPECIAL & set(answer.headers) <= wanted
    assert wanted - {"Penstock-Repeat"} <= set(answer.headers)  # That one is for repeats only.
    kind = answer.headers["Content-Type"].partition(";")[0]
    if kind == PLAIN:
        check_value(response["content"][kind]["schema"], answer.json())
    elif kind == NDJSON:
        for line in answer.lines():
            check_value(LINE, line)
    else:
        assert response["content"][kind]["schema"] == {"type": "string"}


def walk(service: Service, cases: Iterable[Case]) -> set[tuple[str, int]]:
    """Ask one thing after the other, and check each answer; which paths answered what."""
    seen = set()
    for path, method, body, kind, status in cases:
        answer = service.call(method, path, body, kind)
        assert answer.status == status, (path, method, answer.body)
        check(*documented(path), answer)
        seen.add((documented(path)[0], status))
    return seen


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("document")
    with running(folder / "data", "--body-bytes", "64KiB", app=patient_first(folder)) as service:
        yield service


def test_every_answer_is_documented_at_its_path(service: Service) -> None:
    seen = walk(service, CASES)
    assert {path for path, _ in OPERATIONS} == {path for path, status in seen if status == 200}


def test_what_is_said_on_a_full_disk_is_documented(tmp_path: Path) -> None:
    settings = ("--segment-bytes", "16MiB", "--snapshot-every", "1h")
    with small_disk(tmp_path) as disk, running(on(disk, tmp_path), *settings) as service:
        service.call("POST", EVENTS, b"{}")  # a dead letter
        fill(disk)
        fill_the_log(service)
        walk(service, FULL)


def test_what_is_said_of_a_damaged_log_is_documented(tmp_path: Path) -> None:
    with running(tmp_path / "data") as service:
        service.decide(payment(1))
        (segment,) = (tmp_path / "data" / "log").glob("*.segment")
        with segment.open("r+b") as file:
            file.seek(segment.read_bytes().rindex(b"p1"))
            file.write(b"q")
        walk(service, DAMAGED)


def test_what_is_said_of_too_many_and_of_slow_requests_is_documented(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--rate", "1", "--request-time", "100ms") as service:
        for path, method in CORE:
            kinds = [*DOCUMENT["paths"][path][method].get("requestBody", {}).get("content", [PLAIN])]
            body = b"[" if method == "post" else None
            answers = [service.call(method.upper(), asked(path), body, kinds[0]) for _ in range(3)]
            for answer in answers:
                check(path, method, answer)
            assert 429 in [answer.status for answer in answers]
        for path, method in WITH_BODY:
            slow = exchange(service, f"POST {asked(path)} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n[".encode())
            headers = {name.title(): value for name, value in slow.headers.items()}
            assert slow.status == 408
            check(path, method, Answer(slow.status, slow.body, headers))


def test_every_documented_status_is_brought_about_by_some_request_here() -> None:
    """By the cases above, and by those that are the same for all operations of a kind."""
    seen = {(documented(path)[0], str(status)) for path, _, _, _, status in CASES + FULL + DAMAGED}
    seen |= {(path, status) for path, _ in GUARDED for status in ("401", "403")}
    seen |= {(path, "429") for path, _ in CORE} | {(path, "408") for path, _ in WITH_BODY}
    wanted = {(path, status) for path, method in OPERATIONS for status in DOCUMENT["paths"][path][method]["responses"]}
    assert wanted - seen == set(UNSEEN)
    assert seen <= wanted


def test_a_repeat_is_marked_where_the_document_says_so(service: Service) -> None:
    event = text(payment(100))
    assert service.call("POST", DECIDE, event).status == 200
    assert service.call("POST", DECIDE, event).headers["Penstock-Repeat"] == "1"
    assert "Penstock-Repeat" not in service.call("POST", DECIDE, event + b"\n" + event, NDJSON).headers
    assert "took_ms" not in service.call("GET", LOOKUP + "p100").json()


def test_a_refused_caller_s_answer_is_documented_at_every_path_that_takes_a_token(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    roles = ("query", "ingest")
    tokens = {role: succeed("tokens", "new", role, "--role", role, "--tokens", file).strip() for role in roles}
    with running(tmp_path / "data", "--tokens", str(file)) as service:
        for path, method in OPERATIONS:
            answer = service.call(method.upper(), asked(path), b"{}" if method == "post" else None)
            assert (answer.status == 401) == ((path, method) in GUARDED)
            check(path, method, answer)
            lacking = "query" if "topics" in path else "ingest"
            answer = service.call(method.upper(), asked(path), None, token=tokens[lacking])
            assert (answer.status == 403) == ((path, method) in GUARDED)
            check(path, method, answer)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_what_can_happen_everywhere_is_documented_everywhere(path: str, method: str) -> None:
    operation = DOCUMENT["paths"][path][method]
    wanted = {"200", "405", "500"}
    if operation["security"]:
        wanted |= {"401", "403"}
    if path.startswith("/v1/"):
        wanted |= {"400", "429", "503"}
    if "requestBody" in operation:
        wanted |= {"408", "413", "415", "422"}
    assert wanted <= set(operation["responses"])


def test_every_status_of_a_code_is_in_the_table() -> None:
    rows = re.findall(r"^\| (\d{3}[^|]*) \|", DOCUMENT["info"]["description"], re.MULTILINE)
    listed = {status for row in rows for status in re.findall(r"\d{3}", row)}
    used = {
        status
        for path, method in OPERATIONS
        for status in DOCUMENT["paths"][path][method]["responses"]
        if status != "200"
    }
    assert used <= listed
