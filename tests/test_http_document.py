"""docs/http.yaml against a running service: each answer is documented at its path, with its headers and fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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

DOCUMENT = yaml.safe_load((ROOT / "docs" / "http.yaml").read_text())
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
PLAIN = "application/json"

# Headers of single answers; the others are HTTP's own, the same everywhere.
SPECIAL = {"WWW-Authenticate", "Penstock-Repeat", "Allow", "Retry-After"}

POSITION = {"consumer": "warehouse", "topic": "payments", "offset": 0}
LETTERS = "/v1/topics/payments/deadletters"
LOOKUP = "/v1/decisions/authorise/"


def text(*values: Any) -> bytes:
    return b"\n".join(value if isinstance(value, bytes) else json.dumps(value).encode() for value in values)


# Path, method, body, its type, and the answer's status; in this order, over one directory.
CASES: list[tuple[str, str, bytes | None, str, int]] = [
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
    *((path.format(policy="authorise", topic="payments", id="p1"), "PUT", None, PLAIN, 405) for path, _ in OPERATIONS),
]


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


def check_fields(schema: JSON, value: Any) -> None:
    """Required fields are there, and no other than the named ones."""
    schema = resolved(schema)
    parts = [resolved(part) for part in schema.get("allOf", [schema])]
    properties = {name: about for part in parts for name, about in part.get("properties", {}).items()}
    if not properties or not isinstance(value, dict):
        return
    assert {name for part in parts for name in part.get("required", [])} <= set(value) <= set(properties)
    for name, inner in value.items():
        check_fields(properties[name], inner)


def check(template: str, method: str, answer: Answer) -> None:
    response = resolved(DOCUMENT["paths"][template][method]["responses"][str(answer.status)])
    assert SPECIAL & set(answer.headers) <= set(response.get("headers", {}))
    kind = answer.headers["Content-Type"].partition(";")[0]
    assert kind in response["content"]
    if kind == PLAIN:
        check_fields(response["content"][kind]["schema"], answer.json())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("document")
    with running(folder / "data", "--body-bytes", "64KiB", app=patient_first(folder)) as service:
        yield service


def test_every_answer_is_documented_at_its_path(service: Service) -> None:
    asked = set()
    for path, method, body, kind, status in CASES:
        answer = service.call(method, path, body, kind)
        assert answer.status == status, (path, method, answer.body)
        check(*documented(path), answer)
        asked.add((documented(path)[0], status))
    assert {path for path, _ in OPERATIONS} == {path for path, status in asked if status == 200}


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
            asked = path.format(policy="authorise", topic="payments", id="p1")
            answer = service.call(method.upper(), asked, b"{}" if method == "post" else None)
            assert (answer.status == 401) == bool(DOCUMENT["paths"][path][method]["security"])
            check(path, method, answer)
            lacking = "query" if "topics" in path else "ingest"
            answer = service.call(method.upper(), asked, None, token=tokens[lacking])
            assert (answer.status == 403) == bool(DOCUMENT["paths"][path][method]["security"])
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
