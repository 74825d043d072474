"""Doors beyond loopback as operators run them: real processes, real TLS, tokens that come and go."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from certificates import Authority
from penstock.errors import SettingsError
from penstock.runtime.calls import post
from processes import DECIDE, EVENTS, PATIENCE_S, Service, fail, payment, penstock, running, succeed

ROLES = ("ingest", "decide", "query", "admin")


def new_token(file: Path, name: str, *roles: str) -> str:
    named = [word for role in roles for word in ("--role", role)]
    return succeed("tokens", "new", name, *named, "--tokens", file).strip()


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


class Files:
    """What a service beyond loopback is given: a certificate with its key, and tokens."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.certificate, self.key, self.tokens = folder / "door.pem", folder / "door.key", folder / "tokens.toml"
        self.authority.issue(self.certificate, self.key)
        new_token(self.tokens, "first", "admin")
        tls = ("--tls-certificate", str(self.certificate), "--tls-key", str(self.key))
        self.options = (*tls, "--tokens", str(self.tokens))

    @contextmanager
    def running(self, data: Path, *arguments: str) -> Iterator[Service]:
        with running(data, *self.options, *arguments) as service:
            service.context = self.authority.context()
            yield service


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_beyond_loopback_callers_need_tls_and_a_token(files: Files, tmp_path: Path) -> None:
    token = new_token(files.tokens, "checkout", "decide")
    with files.running(tmp_path / "data", "--host", "0.0.0.0") as service:
        assert re.search(r"^ready .* https://0\.0\.0\.0:\d+$", service.log.read_text(), re.MULTILINE)
        body = json.dumps(payment(1)).encode()
        assert service.call("POST", DECIDE, body, token=token).status == 200
        assert service.call("POST", EVENTS, body, token=token).status == 403
        assert service.call("POST", DECIDE, body).status == 401
        service.context = None
        with pytest.raises((OSError, http.client.HTTPException)):
            service.call("POST", DECIDE, body, token=token)
        assert service.end() == 0


@pytest.mark.parametrize("lacking", ["tokens", "tls"])
def test_beyond_loopback_a_service_does_not_start_without_both(files: Files, tmp_path: Path, lacking: str) -> None:
    options = files.options[:4] if lacking == "tokens" else files.options[4:]
    said = fail("run", "nothing.py", "--data", tmp_path / "data", "--host", "0.0.0.0", *options)
    missing = "tokens" if lacking == "tokens" else "tls_certificate and tls_key"
    assert f"cannot listen on 0.0.0.0, where others can call, without {missing}\n" in said
    assert not (tmp_path / "data").exists()


def test_what_is_wrong_with_the_files_is_said_before_anything_starts(files: Files, tmp_path: Path) -> None:
    run = ("run", "nothing.py", "--data", tmp_path / "data", *files.options)
    files.key.chmod(0o644)
    assert f"others may read or change tls_key {files.key}" in fail(*run)
    files.authority.issue(files.certificate, files.key, start=-3)
    files.key.chmod(0o600)
    assert f"tls_certificate {files.certificate} has expired" in fail(*run)
    files.authority.issue(files.certificate, files.key)
    files.tokens.unlink()
    assert f"could not read the tokens file {files.tokens}" in fail(*run)


def test_sighup_takes_tokens_and_certificate_anew_and_open_connections_go_on(files: Files, tmp_path: Path) -> None:
    old = new_token(files.tokens, "old", "decide")
    with files.running(tmp_path / "data") as service:
        kept = http.client.HTTPSConnection("localhost", service.port, timeout=30, context=service.context)

        def decide(number: int, token: str) -> int:
            kept.request("POST", DECIDE, json.dumps(payment(number)), {"Authorization": f"Bearer {token}"})
            response = kept.getresponse()
            response.read()
            return response.status

        assert decide(1, old) == 200
        socket = kept.sock
        new = new_token(files.tokens, "new", "decide")
        succeed("tokens", "remove", "old", "--tokens", files.tokens)
        files.authority.issue(files.certificate, files.key, days=3)
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: decide(2, old) == 401)
        assert decide(2, new) == 200
        eventually(lambda: days_left(service, new) > 2)
        assert decide(3, new) == 200 and kept.sock is socket
        kept.close()
        assert service.end() == 0


def days_left(service: Service, token: str) -> float:
    """Of the certificate that a new connection is shown."""
    connection = http.client.HTTPSConnection("localhost", service.port, timeout=30, context=service.context)
    connection.connect()
    assert isinstance(connection.sock, ssl.SSLSocket)
    shown = connection.sock.getpeercert()
    connection.close()
    assert shown is not None
    return (ssl.cert_time_to_seconds(str(shown["notAfter"])) - time.time()) / 86_400


def heed_sighup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_sighup_without_such_files_ends_the_process_as_it_always_does(tmp_path: Path) -> None:
    # Whoever runs the tests may have it ignored, which processes inherit.
    with running(tmp_path / "data", setup=heed_sighup) as service:
        assert service.end(signal.SIGHUP) == -signal.SIGHUP


def test_no_token_is_ever_written_or_shown(files: Files, tmp_path: Path) -> None:
    tokens = {role: new_token(files.tokens, role, role) for role in ROLES}
    wrong = "pst_" + "w" * 43
    with files.running(tmp_path / "data", "--level", "debug") as service:
        asked = [("POST", DECIDE), ("POST", EVENTS), ("GET", "/metrics"), ("GET", "/readyz"), ("GET", "/x")]
        for token in (*tokens.values(), wrong, wrong + "/../%00"):
            for method, path in asked:
                answer = service.call(method, path, b"{" if method == "POST" else None, token=token)
                assert token.encode() not in answer.body and token not in str(answer.headers)
        arguments = Path(f"/proc/{service.process.pid}/cmdline").read_text()
        succeed("tokens", "remove", "query", "--tokens", files.tokens)
        files.tokens.write_text(files.tokens.read_text() + "x")
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: "stays in force" in service.log.read_text())
        service.end()
        said = service.log.read_text() + arguments
    listed = succeed("settings", *files.options)
    for token in (*tokens.values(), wrong):
        digest = hashlib.sha256(token.encode()).hexdigest()
        assert token not in said + listed and digest not in said + listed
        for folder, _, names in os.walk(tmp_path):
            for name in names:
                assert token.encode() not in (Path(folder) / name).read_bytes(), name


# Our own clients.


def test_consumers_go_through_a_service_with_tls_by_their_token(files: Files, tmp_path: Path) -> None:
    tokens = {role: new_token(files.tokens, role, role) for role in ("admin", "query")}
    data = tmp_path / "data"
    with files.running(data) as service:
        service.call("POST", EVENTS, json.dumps(payment(1)).encode(), token=tokens["admin"])
        tail = ("tail", "payments", "--consumer", "warehouse", "--data", data)
        at = ("--url", f"https://localhost:{service.port}")
        trusting = {"SSL_CERT_FILE": str(files.authority.file)}
        assert "is not trusted" in fail(*tail, *at)
        assert "takes a token" in fail(*tail, *at, environment=trusting)
        for role, wanted in (("query", "with the role admin"), ("admin", "")):
            environment = {**trusting, "PENSTOCK_TOKEN": tokens[role]}
            done = penstock(*tail, *at, environment=environment)
            assert (done.returncode != 0) == bool(wanted) and wanted in done.stderr
            assert tokens[role] not in done.stderr
        listed = json.loads(succeed("consumers", "--json", "--data", data))
        assert [each["offset"] for each in listed] == [1]
        forget = ("consumers", "--forget", "warehouse", "--data", data)
        plain = ("--url", f"http://localhost:{service.port}")
        assert "does not answer" in fail(*forget, *plain, environment=environment)
        # Its own settings say where the service is.
        at = ("--port", str(service.port))
        (tmp_path / "penstock.toml").write_text(f'host = "127.0.0.1"\ntls_certificate = "{files.certificate}"\n')
        succeed(*forget, *at, environment=environment, cwd=tmp_path)
        assert json.loads(succeed("consumers", "--json", "--data", data)) == []


@pytest.mark.parametrize("url", ["http://192.0.2.1:7070", "http://service.example"])
def test_a_token_is_not_sent_where_others_can_read_along(url: str) -> None:
    with pytest.raises(SettingsError, match="is not sent"):
        post(url, "/v1/positions", b"{}", environment={"PENSTOCK_TOKEN": "pst_a"})


def test_a_token_that_is_none_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError) as raised:
        post("http://localhost:1", "/", b"{}", environment={"PENSTOCK_TOKEN": "pst_a\r\nX: y"})
    assert "pst_a" not in str(raised.value)


# The commands.


def test_tokens_are_made_listed_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    done = penstock("tokens", "new", "checkout", "--role", "query", "--role", "decide", "--tokens", file)
    token = done.stdout.strip()
    assert re.fullmatch(r"pst_[A-Za-z0-9_-]{43}", token) and token not in done.stderr
    new_token(file, "bank", "ingest")
    first, second = succeed("tokens", "list", "--tokens", file).splitlines()
    assert first.split()[:3] == ["checkout", "decide,", "query"] and second.split()[:2] == ["bank", "ingest"]
    listed = json.loads(succeed("tokens", "list", "--json", "--tokens", file))
    assert {each["name"]: each["roles"] for each in listed} == {"checkout": ["decide", "query"], "bank": ["ingest"]}
    succeed("tokens", "remove", "checkout", "--tokens", file)
    assert [each["name"] for each in json.loads(succeed("tokens", "list", "--json", "--tokens", file))] == ["bank"]


def test_tokens_that_cannot_be_are_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    new_token(file, "bank", "ingest")
    assert 'has a token "bank"' in fail("tokens", "new", "bank", "--role", "query", "--tokens", file)
    assert 'has no token "banc"' in fail("tokens", "remove", "banc", "--tokens", file)
    assert "a token's name has" in fail("tokens", "new", "a b", "--role", "query", "--tokens", file)
    assert "no tokens file is set" in fail("tokens", "list", cwd=tmp_path)
    assert "could not use" in fail("tokens", "new", "a", "--role", "query", "--tokens", tmp_path / "no" / "tokens.toml")
    assert penstock("tokens", "new", "a", "--tokens", file).returncode == 2
