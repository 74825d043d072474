"""Who may ask what: every path for every role, and for callers without a token or with one that is none."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.errors import InputError, SettingsError
from penstock.serve.access import OPENED_BY
from penstock.serve.tokens import ROLES, TOKENS_MAX, new_token, read_tokens, remove_token
from serve.client import DECIDE, Running, eventually, get, post, running
from serve.stand_in import StandIn

EVENTS = "/v1/topics/payments/events"
DEAD_LETTERS = "/v1/topics/payments/deadletters"

# Every route with what asks for it, and the roles that may. Written out, so that a slip in the door's table shows.
ASKED: dict[str, tuple[bytes, set[str]]] = {
    "decide": (post(DECIDE), {"decide", "admin"}),
    "dry_run": (post(DECIDE + "?dry_run=1"), {"decide", "admin"}),
    "decisions": (get("/v1/decisions/authorise/p1"), {"decide", "query", "admin"}),
    "events": (post(EVENTS), {"ingest", "admin"}),
    "deadletters": (post(DEAD_LETTERS, media="application/x-ndjson"), {"ingest", "admin"}),
    "positions": (post("/v1/positions"), {"admin"}),
    "metrics": (get("/metrics"), {"query", "admin"}),
    "healthz": (get("/healthz"), {*ROLES, "none", "wrong", "removed"}),
    "readyz": (get("/readyz"), {*ROLES, "none", "wrong", "removed"}),
}

# The same asked for otherwise: none of these is a way around.
OTHERWISE = {
    "decide": [
        post("/v1/policies/%61uthorise/decide"),
        post("http://penstock" + DECIDE),
        post(DECIDE + "?dry_run=0"),
        post("/v1/policies/other/decide"),
        get(DECIDE),
        post(DECIDE, b"{}", "Transfer-Encoding: chunked", length=None).replace(b"Content-Length: 2\r\n", b"")[:-2]
        + b"2\r\n{}\r\n0\r\n\r\n",
    ],
    "dry_run": [post("/v1/policies/%61uthorise/decide?dry_run=1")],
    "decisions": [get("/v1/decisions/other/p1"), get("/v1/decisions/authorise/p1", method="HEAD")],
    "events": [post("/v1/topics/other/events"), post(EVENTS + "?a=1"), post(EVENTS, media="text/plain")],
    "deadletters": [post(DEAD_LETTERS + "?a=1"), post("/v1/topics/other/deadletters")],
    "positions": [post("/v1/positions?a=1"), get("/v1/positions")],
    "metrics": [get("/metrics?a=1"), get("/metrics", method="HEAD"), post("/metrics")],
}


def with_token(request: bytes, *tokens: str) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = "".join(f"\r\nAuthorization: Bearer {token}" for token in tokens).encode()
    return head + lines + b"\r\n\r\n" + body


class Guarded(SimpleNamespace):
    door: Running
    file: Path
    tokens: dict[str, str]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A door with a token for each role, and one that was in force and is not any more."""
    core = StandIn()
    file = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens = {role: new_token(file, role, [role]) for role in ROLES}
    tokens |= {"removed": new_token(file, "removed", ROLES), "wrong": "pst_" + "a" * 43}
    with running(core, tokens=file) as door:
        connection = door.client()
        assert connection.ask(with_token(post(DECIDE), tokens["removed"])).status == 200
        remove_token(file, "removed")
        eventually(lambda: connection.ask(with_token(post(DECIDE), tokens["removed"])).status == 401)
        yield Guarded(door=door, file=file, tokens=tokens)
    core.close()


def test_the_matrix_has_every_route() -> None:
    assert set(ASKED) == set(OPENED_BY)


@pytest.mark.parametrize("who", [*ROLES, "none", "wrong", "removed"])
@pytest.mark.parametrize("route", ASKED)
def test_each_path_is_open_to_its_roles_and_to_no_other(guarded: Guarded, route: str, who: str) -> None:
    request, allowed = ASKED[route]
    said = () if who == "none" else (guarded.tokens[who],)
    client = guarded.door.client()
    for _ in range(2):  # The second time the door knows the head.
        answer = client.ask(with_token(request, *said))
        if who in allowed:
            assert answer.status == 200
        elif who in ROLES:
            assert (answer.status, answer.code) == (403, "missing_role")
            assert answer.json["error"]["role"] == next(iter(OPENED_BY[route] or ()))
            assert "www-authenticate" not in answer.headers
        else:
            assert (answer.status, answer.code) == (401, "no_token" if who == "none" else "invalid_token")
            challenge = answer.headers["www-authenticate"]
            assert challenge.startswith('Bearer realm="penstock"')
            assert ("invalid_token" in challenge) == (who != "none")


@pytest.mark.parametrize("who", [*ROLES, "none", "wrong", "removed"])
@pytest.mark.parametrize("route", OTHERWISE)
def test_no_other_spelling_opens_a_path_or_tells_what_there_is(guarded: Guarded, route: str, who: str) -> None:
    said = () if who == "none" else (guarded.tokens[who],)
    for request in OTHERWISE[route]:
        answer = guarded.door.client().ask(with_token(request, *said)) if b"HEAD" not in request[:4] else None
        if answer is None:
            client = guarded.door.client()
            client.send(with_token(request, *said))
            answer = client.answer(head_only=True)
        if who in ASKED[route][1]:
            assert answer.status not in (401, 403)
        else:
            assert answer.status == (403 if who in ROLES else 401), request
            assert b'"known"' not in answer.body


def test_a_path_that_is_none_is_told_only_to_who_has_a_token(guarded: Guarded) -> None:
    assert guarded.door.ask(get("/v2/other")).status == 401
    assert guarded.door.ask(with_token(get("/v2/other"), guarded.tokens["ingest"])).status == 404


@pytest.mark.parametrize(
    "header",
    ["Basic cHN0Og==", "Bearer", "Bearer ", "Bearer a b", "bearer\t{token}", "{token}", "Bearer {token}x", "Bearer ü"],
)
def test_what_is_no_token_of_ours_opens_nothing(guarded: Guarded, header: str) -> None:
    line = f"Authorization: {header.format(token=guarded.tokens['admin'])}"
    answer = guarded.door.ask(post(DECIDE, b"{}", line))
    assert (answer.status, answer.code) == (401, "invalid_token")


def test_two_tokens_in_one_request_are_none(guarded: Guarded) -> None:
    answer = guarded.door.ask(with_token(post(DECIDE), guarded.tokens["decide"], guarded.tokens["admin"]))
    assert (answer.status, answer.code) == (401, "invalid_token")


def test_the_scheme_may_be_written_in_any_case(guarded: Guarded) -> None:
    assert guarded.door.ask(post(DECIDE, b"{}", f"authorization: BEARER  {guarded.tokens['decide']}")).status == 200


def test_a_refused_caller_is_answered_before_a_large_body_comes(guarded: Guarded) -> None:
    for request in (
        post(DECIDE, b"", length=1 << 20),
        post(DECIDE, b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b""),
        post(DECIDE, b"", "Expect: 100-continue", length=2),
    ):
        client = guarded.door.client()
        answer = client.ask(request)
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert client.ended()


def test_a_refused_caller_with_a_small_body_keeps_its_connection(guarded: Guarded) -> None:
    client = guarded.door.client()
    assert client.ask(post(DECIDE, b"x" * 1_000)).status == 401
    assert client.ask(with_token(post(DECIDE), guarded.tokens["decide"])).status == 200


def test_refused_callers_are_counted_by_reason_and_never_by_token(guarded: Guarded) -> None:
    def counted() -> tuple[str, dict[str, float]]:
        text = guarded.door.ask(with_token(get("/metrics"), guarded.tokens["query"])).body.decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        samples = families["penstock_refused_callers"].samples
        return text, {sample.labels["reason"]: sample.value for sample in samples}

    _, before = counted()
    guarded.door.ask(post(DECIDE))
    guarded.door.ask(with_token(post(DECIDE), guarded.tokens["wrong"]))
    guarded.door.ask(with_token(post(DECIDE), guarded.tokens["query"]))
    text, after = counted()
    for reason in ("no_token", "invalid_token", "missing_role"):
        assert after[reason] - before.get(reason, 0) == 1
    for token in guarded.tokens.values():
        assert token not in text and hashlib.sha256(token.encode()).hexdigest() not in text


def test_the_core_is_asked_nothing_for_who_is_refused(core: StandIn, tmp_path: Path) -> None:
    new_token(tmp_path / "tokens.toml", "a", ["query"])
    with running(core, tokens=tmp_path / "tokens.toml") as door:
        for number in range(100):
            assert door.ask(with_token(post(DECIDE), f"pst_{number}")).status == 401
    assert core.requests == []


def test_a_head_that_was_let_in_is_not_hashed_again_until_tokens_are_read_anew(
    core: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[bytes] = []

    def digest_of(token: bytes) -> bytes:
        hashed.append(token)
        return hashlib.sha256(token).digest()

    monkeypatch.setattr("penstock.serve.access.digest_of", digest_of)
    file = tmp_path / "tokens.toml"
    token = new_token(file, "one", ["decide"])
    with running(core, tokens=file) as door:
        for _ in range(2):
            client = door.client()
            assert [client.ask(with_token(post(DECIDE), token)).status for _ in range(5)] == [200] * 5
        assert hashed == [token.encode()]
        new_token(file, "two", ["decide"])
        eventually(lambda: client.ask(with_token(post(DECIDE), token)).status == 200 and len(hashed) == 2)


def test_a_new_token_opens_and_a_removed_one_ends_on_open_connections(core: StandIn, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    old = new_token(file, "old", ["decide"])
    with running(core, tokens=file) as door:
        client = door.client()
        for _ in range(3):
            assert client.ask(with_token(post(DECIDE), old)).status == 200
        core.stuck.set()
        client.send(with_token(post(DECIDE), old))
        eventually(lambda: len(core.batches) == 4)
        new = new_token(file, "new", ["decide"])
        remove_token(file, "old")
        core.stuck.clear()
        assert client.answer().status == 200  # What was let in is answered.
        eventually(lambda: client.ask(with_token(post(DECIDE), old)).status == 401)
        assert client.ask(with_token(post(DECIDE), new)).status == 200


def test_a_file_that_cannot_be_read_leaves_the_tokens_in_force(
    core: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens.toml"
    token = new_token(file, "one", ["decide"])
    with running(core, tokens=file) as door:
        for damage in (lambda: file.write_text("[tokens"), lambda: file.chmod(0o666), file.unlink):
            caplog.clear()
            damage()
            eventually(lambda: "stays in force" in caplog.text)
            assert door.ask(with_token(post(DECIDE), token)).status == 200
            assert token not in caplog.text
        other = new_token(file, "two", ["decide"])
        eventually(lambda: door.ask(with_token(post(DECIDE), other)).status == 200)
        assert door.ask(with_token(post(DECIDE), token)).status == 401


def test_without_a_tokens_file_a_token_is_looked_at_by_nobody(door: Running) -> None:
    assert door.ask(with_token(post(DECIDE), "pst_a")).status == 200
    assert door.ask(post(DECIDE)).status == 200


# The file.


def test_the_file_holds_the_hash_and_not_the_token(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    token = new_token(file, "checkout", ["query", "decide"])
    (read,) = read_tokens(file)
    assert (read.name, read.roles) == ("checkout", ("decide", "query"))
    assert read.digest == hashlib.sha256(token.encode()).digest()
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(token) >= 43 and new_token(file, "other", ["decide"]) != token


def test_changes_keep_the_others_and_the_mode(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    for name in ("a", "b.c", "d-e_f"):
        new_token(file, name, ["ingest"])
    file.chmod(0o640)
    remove_token(file, "b.c")
    assert [token.name for token in read_tokens(file)] == ["a", "d-e_f"]
    assert file.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["tokens.toml"]


def test_a_name_is_taken_once_and_there_is_a_most(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    new_token(file, "a", ["ingest"])
    with pytest.raises(InputError, match='has a token "a"'):
        new_token(file, "a", ["decide"])
    with pytest.raises(InputError, match="a token's name"):
        new_token(file, 'a"]', ["decide"])
    with pytest.raises(InputError, match='no token "b"'):
        remove_token(file, "b")
    entry = '[tokens."t{0}"]\nsha256 = "{0:064x}"\nroles = ["query"]\n'
    file.write_text("".join(entry.format(number) for number in range(TOKENS_MAX)))
    with pytest.raises(InputError, match="that is the most"):
        new_token(file, "one-more", ["ingest"])
    file.write_text("".join(entry.format(number) for number in range(TOKENS_MAX + 1)))
    with pytest.raises(SettingsError, match="more than 256"):
        read_tokens(file)


HASH = "ab" * 32
WRONG = {
    "not TOML": f'[tokens.a]\nsha256 = "{HASH}',
    "another key": f'key = "{HASH}"',
    "no table": f'tokens = "{HASH}"',
    "a name": f'[tokens."a b"]\nsha256 = "{HASH}"\nroles = ["query"]',
    "no roles": f'[tokens.a]\nsha256 = "{HASH}"\nroles = []',
    "no such role": f'[tokens.a]\nsha256 = "{HASH}"\nroles = ["root"]',
    "a role alone": f'[tokens.a]\nsha256 = "{HASH}"\nroles = "admin"',
    "a short hash": f'[tokens.a]\nsha256 = "{HASH[1:]}"\nroles = ["query"]',
    "a token for a hash": f'[tokens.a]\ntoken = "{HASH}"\nroles = ["query"]',
    "one hash twice": "".join(f'[tokens.{name}]\nsha256 = "{HASH}"\nroles = ["query"]\n' for name in "ab"),
    "a time": f'[tokens.a]\nsha256 = "{HASH}"\nroles = ["query"]\ncreated = 7',
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_none_is_refused_with_the_place_and_no_secret(case: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(WRONG[case])
    with pytest.raises(SettingsError) as raised:
        read_tokens(file)
    assert str(file) in str(raised.value)
    assert HASH[1:] not in str(raised.value)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    new_token(file, "a", ["ingest"])
    file.chmod(0o620)
    with pytest.raises(SettingsError, match="others may write"):
        read_tokens(file)
