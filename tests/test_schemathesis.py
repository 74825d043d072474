"""docs/http.yaml by schemathesis: what it makes of the document, sound or not, and each answer by the document."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import yaml

from fuzz import fuzz
from processes import DECIDE, ROOT, Service, patient_first, payment, running, succeed

DOCUMENT = yaml.safe_load((ROOT / "docs" / "http.yaml").read_text())
OPERATIONS = [(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods]
SEEN: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
# Beyond what a schema says: an id that was used, a time ahead of the clock, a row that is rejected in a 200.
WORDS_ALONE = (schemathesis.checks.negative_data_rejection, schemathesis.checks.positive_data_acceptance)


def of_the_first_example(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the names and the event of one pipeline: else 404 and 422 would be all that is met."""
    document = copy.deepcopy(document)
    document["components"]["parameters"]["policy"]["schema"] = {"enum": ["authorise", "other"]}
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                if parameter.get("name") == "topic":
                    parameter["schema"] = {"enum": ["payments", "other"]}
                if parameter.get("name") == "id":
                    parameter["schema"] = {"enum": ["p1", "p2", "ä b"]}
    document["components"]["schemas"]["Event"] = {
        "type": "object",
        "additionalProperties": False,
        "required": ["payment_id", "card", "amount", "paid_at"],
        "properties": {
            "payment_id": {"type": "string", "maxLength": 9},
            "card": {"type": "string", "maxLength": 9},
            "amount": {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^-?[0-9]{1,9}\.[0-9]{2}$"}]},
            "paid_at": {"type": "string", "format": "date-time"},
        },
    }
    return document


@schemathesis.serializer("application/x-ndjson", "application/vnd.apache.arrow.stream")
def as_it_is(_: schemathesis.SerializationContext, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


SCHEMA = schemathesis.openapi.from_dict(of_the_first_example(DOCUMENT))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    """With tokens, so that a request without one shows whether it is refused."""
    folder = tmp_path_factory.mktemp("schemathesis")
    tokens = folder / "tokens.toml"
    token = succeed("tokens", "new", "all", "--role", "admin", "--tokens", tokens).strip()
    with running(folder / "data", "--tokens", str(tokens), app=patient_first(folder)) as service:
        service.call("POST", DECIDE, json.dumps(payment(1)).encode(), token=token)
        yield service, token
    # What is never taken shows little.
    unseen = {operation for operation in OPERATIONS if 200 not in SEEN[operation]}
    assert unseen <= {("POST", "/v1/topics/{topic}/deadletters")}


@SCHEMA.parametrize()
@fuzz("few", 60)
def test_every_answer_to_what_schemathesis_makes_of_the_document_is_documented(
    case: schemathesis.Case[Any], service: tuple[Service, str]
) -> None:
    door, token = service
    answer = case.call_and_validate(
        base_url=f"http://127.0.0.1:{door.port}",
        headers={"Authorization": f"Bearer {token}"},
        excluded_checks=list(WORDS_ALONE),
    )
    SEEN[case.method.upper(), case.path].add(answer.status_code)
