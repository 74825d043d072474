"""TLS at the door: real handshakes, certificates that are wrong, and connections that never shake hands."""

from __future__ import annotations

import base64
import socket
import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from certificates import Authority
from penstock.errors import SettingsError
from penstock.serve.certificate import Certificate
from serve.client import DECIDE, Client, Running, eventually, get, post, running
from serve.stand_in import StandIn


@dataclass
class Files:
    """A certificate and its key, and who issued them."""

    authority: Authority
    certificate: Path
    key: Path

    def issue(self, **options: Any) -> None:
        self.authority.issue(self.certificate, self.key, **options)

    def running(self, core: StandIn, **settings: Any) -> AbstractContextManager[Running]:
        context = self.authority.context()
        return running(core, tls_certificate=self.certificate, tls_key=self.key, context=context, **settings)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(Authority(tmp_path), tmp_path / "door.pem", tmp_path / "door.key")
    files.issue()
    return files


@pytest.fixture
def door(core: StandIn, files: Files) -> Iterator[Running]:
    with files.running(core) as door:
        yield door


def metric(door: Running, name: str) -> float:
    lines = door.ask(get("/metrics")).body.decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"penstock_{name} ")).rpartition(" ")[2])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_requests_are_answered_as_without_tls(core: StandIn, files: Files, version: ssl.TLSVersion) -> None:
    with files.running(core) as door:
        assert door.context is not None
        door.context.minimum_version = door.context.maximum_version = version
        client = door.client()
        for number in range(5):
            assert client.ask(post(DECIDE, b"%d" % number)).json[2] == str(number)
        client.send(post(DECIDE, b"a") + post(DECIDE, b"b") + get("/healthz"))
        assert [client.answer().status for _ in range(3)] == [200] * 3
        body = b"x" * 3_000_000
        assert client.ask(post(DECIDE, body)).json[2] == body.decode()
        assert isinstance(client.socket, ssl.SSLSocket)
        assert client.socket.version() == version.name.replace("_", ".")


def test_many_requests_at_once_and_answers_left_unread_are_all_answered_in_order(door: Running) -> None:
    client = door.client()
    bodies = [b"%d" % number * (1 + number % 7 * 5_000) for number in range(400)]
    answers = client.exchange(b"".join(post(DECIDE, body) for body in bodies), len(bodies))
    assert [answer.json[2].encode() for answer in answers] == bodies


def test_what_is_older_than_tls_1_2_is_refused(door: Running) -> None:
    assert door.context is not None
    door.context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        door.context.minimum_version = ssl.TLSVersion.TLSv1
        door.context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        door.client()


def test_http_without_tls_is_not_answered(door: Running) -> None:
    client = Client(door.port)
    client.send(post(DECIDE))
    with pytest.raises((ConnectionError, ValueError)):
        client.answer()
    client.close()
    eventually(lambda: metric(door, "tls_handshakes_failed_total") == 1)


def test_the_last_answer_arrives_before_the_end(door: Running) -> None:
    for ending in (post(DECIDE, b"{}", "Connection: close"), b"nonsense\r\n\r\n", post(DECIDE, b"", length=1 << 40)):
        client = door.client()
        assert client.ask(ending).headers["connection"] == "close"
        client.close()
    client = door.client()
    assert client.ask(post(DECIDE, b"{}", "Connection: close")).status == 200
    assert client.ended()


def test_who_is_refused_while_still_sending_gets_the_answer(core: StandIn, files: Files) -> None:
    with files.running(core, body_bytes_max=1_000) as door:
        client = door.client()
        (refused,) = client.exchange(post(DECIDE, b"x" * (4 << 20)), 1)
        assert refused.status == 413
        client.close()


def test_a_client_that_says_it_is_done_ends_the_connection(core: StandIn, files: Files) -> None:
    core.script = lambda request: None
    with files.running(core) as door:
        client = door.client()
        client.send(post(DECIDE))
        eventually(lambda: len(core.requests) == 1)
        assert isinstance(client.socket, ssl.SSLSocket)
        client.socket.unwrap()
        assert client.socket is not None
        core.say((core.requests[0][0], 200, b"{}", 0))
        eventually(lambda: metric(door, "door_connections") == 1)  # the one that asks


def test_stopping_answers_what_is_held_and_ends(core: StandIn, files: Files) -> None:
    core.script = lambda request: None
    with files.running(core) as door:
        idle, waiting = door.client(), door.client()
        silent = socket.create_connection(("127.0.0.1", door.port))
        assert idle.ask(get("/healthz")).status == 200
        waiting.send(post(DECIDE))
        eventually(lambda: len(core.requests) == 1)
        door.stop()
        assert idle.ended()
        core.say((core.requests[0][0], 200, b"{}", 0))
        assert waiting.answer().status == 200
        assert waiting.ended()
        silent.close()
    assert core.stopped


def test_connections_that_have_not_shaken_hands_count(core: StandIn, files: Files) -> None:
    with files.running(core, connections_max=4, request_s=600.0) as door:
        client = door.client()
        assert client.ask(get("/healthz")).status == 200
        silent = [socket.create_connection(("127.0.0.1", door.port), timeout=20) for _ in range(4)]
        assert silent[3].recv(1) == b""
        for each in silent:
            each.close()
        assert client.ask(get("/healthz")).status == 200
        eventually(lambda: answers(door))


def answers(door: Running) -> bool:
    try:
        return door.ask(get("/healthz")).status == 200
    except OSError:
        return False


def test_a_handshake_has_its_time(core: StandIn, files: Files) -> None:
    with files.running(core, request_s=0.2) as door:
        with socket.create_connection(("127.0.0.1", door.port), timeout=20) as silent:
            assert silent.recv(1) == b""
        eventually(lambda: metric(door, "tls_handshakes_failed_total") == 1)


def serial(door: Running) -> str:
    client = door.client()
    assert isinstance(client.socket, ssl.SSLSocket)
    shown = client.socket.getpeercert()
    assert shown is not None
    return str(shown["serialNumber"])


def test_a_new_certificate_is_shown_to_new_connections_and_the_old_ones_go_on(core: StandIn, files: Files) -> None:
    with files.running(core) as door:
        client, before = door.client(), serial(door)
        expires = metric(door, "tls_certificate_expires_seconds")
        assert client.ask(get("/healthz")).status == 200
        files.issue(days=2)
        eventually(lambda: serial(door) != before)
        assert metric(door, "tls_certificate_expires_seconds") - expires > 80_000
        assert client.ask(get("/healthz")).status == 200


def test_readiness_warns_before_the_certificate_expires(core: StandIn, files: Files) -> None:
    files.issue(days=20)
    with files.running(core) as door:
        assert door.ask(get("/readyz")).json["warnings"] == []
        before = serial(door)
        files.issue(days=13)
        eventually(lambda: serial(door) != before)
        (warning,) = door.ask(get("/readyz")).json["warnings"]
        assert "the certificate in force expires at 20" in warning


def test_a_certificate_that_will_not_do_leaves_the_old_one_in_force(
    core: StandIn, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    with files.running(core) as door:
        before = serial(door)
        for damage in (lambda: files.issue(start=-3), lambda: files.key.write_text(""), files.certificate.unlink):
            caplog.clear()
            damage()
            eventually(lambda: "stays in force" in caplog.text)
            assert serial(door) == before
        files.issue()
        eventually(lambda: serial(door) != before)


# What is wrong with a certificate, in words.


def refused(files: Files) -> str:
    with pytest.raises(SettingsError) as raised:
        Certificate(files.certificate, files.key)
    assert "BEGIN" not in str(raised.value)
    return str(raised.value)


def test_a_file_that_is_missing_or_cannot_be_read_is_named(files: Files) -> None:
    files.key.unlink()
    assert refused(files) == f"could not read tls_key {files.key}: No such file or directory"
    files.certificate.unlink()
    files.certificate.mkdir()
    assert refused(files) == f"could not read tls_certificate {files.certificate}: Is a directory"


def test_a_file_of_something_else_is_refused(files: Files) -> None:
    text = files.certificate.read_text()
    files.certificate.write_text(files.key.read_text())
    assert "holds no certificate in PEM" in refused(files)
    files.certificate.write_text(text[:200] + text[300:])
    assert "could not use" in refused(files)
    files.certificate.write_text(text)
    files.key.write_text(text)
    assert "holds no private key in PEM" in refused(files)


def test_the_key_of_another_certificate_is_refused(files: Files) -> None:
    files.authority.issue(files.certificate, files.key.with_name("other.key"))
    assert "does not belong to" in refused(files)


def test_a_key_whose_halves_do_not_belong_together_is_refused(files: Files) -> None:
    """OpenSSL compares the public half with the certificate's, and finds only when it signs that the other is wrong."""
    lines = files.key.read_text().splitlines()
    content = bytearray(base64.b64decode("".join(lines[1:-1])))
    start = content.index(b"\x04\x20") + 2  # the private half: an octet string of 32 bytes
    content[start + 5] ^= 1
    files.key.write_text("\n".join([lines[0], base64.b64encode(content).decode(), lines[-1], ""]))
    assert f"tls_certificate {files.certificate} and its key do not work: bad signature" in refused(files)


def test_a_certificate_that_is_over_or_has_not_begun_is_refused(files: Files) -> None:
    files.issue(start=-3)
    assert refused(files).endswith("has expired")
    files.issue(start=3)
    assert refused(files).endswith("is not valid yet")


def test_a_key_with_a_password_is_refused_and_not_asked_for(files: Files) -> None:
    files.issue(password=b"secret")
    assert "is encrypted" in refused(files)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o644, 0o660])
def test_a_key_is_for_its_owner_and_at_most_read_by_a_group(files: Files, mode: int) -> None:
    files.key.chmod(mode)
    if mode in (0o600, 0o400, 0o640):
        assert Certificate(files.certificate, files.key).expires_s > 0
    else:
        assert "others may read or change tls_key" in refused(files)
