"""The certificate that the door shows, and its key: what they must be, said in words where they are not."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any, NoReturn

from penstock.errors import SettingsError

# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED, of OpenSSL.
NOT_YET, EXPIRED = 9, 10


class Certificate:
    """A certificate with its key, ready to be shown; `expires_s` in seconds since 1970."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises `SettingsError` for what cannot be read, does not fit, or is not valid now."""
        self.context = _load(certificate, key)
        self.expires_s = _expiry(self.context, certificate)


def _load(certificate: Path, key: Path) -> ssl.SSLContext:
    chain = _read(certificate, "tls_certificate")
    if b"-----BEGIN CERTIFICATE-----" not in chain:
        raise SettingsError(f"tls_certificate {certificate} holds no certificate in PEM")
    _check_key(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=lambda: _no_password(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SettingsError(
                f"tls_key {key} does not belong to tls_certificate {certificate}",
                hint="the first certificate of the file must be the service's own, those of its issuers follow",
            ) from None
        what = (error.reason or "OpenSSL refuses it").replace("_", " ").lower()
        raise SettingsError(f"could not use tls_certificate {certificate} with tls_key {key}: {what}") from None
    return context


def _check_key(path: Path) -> None:
    key = _read(path, "tls_key")
    if b"PRIVATE KEY-----" not in key:
        raise SettingsError(f"tls_key {path} holds no private key in PEM")
    if path.stat().st_mode & 0o027:
        raise SettingsError(
            f"others may read or change tls_key {path}", hint="chmod 600, or 640 where a group of its own may read it"
        )


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"could not read {name} {path}: {error.strerror}") from None


def _no_password(key: Path) -> NoReturn:
    """OpenSSL would ask for it on the terminal."""
    raise SettingsError(f"tls_key {key} is encrypted", hint="give one without a password, for the service alone")


def _expiry(context: ssl.SSLContext, certificate: Path) -> float:
    """Until when a certificate is valid, as a client finds it that trusts exactly this one: by a handshake in memory.

    Python's ssl tells the dates of no certificate but one that was verified.
    """
    text = certificate.read_text(encoding="latin-1")
    own = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    if own is None:
        raise SettingsError(f"tls_certificate {certificate} holds no certificate in PEM")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        trusting.load_verify_locations(cadata=own.group())
        shown = _shake_hands(trusting, context)
    except ssl.SSLCertVerificationError as error:
        when = {NOT_YET: "is not valid yet", EXPIRED: "has expired"}.get(error.verify_code)
        what = when or f"would be refused by clients: {error.verify_message}"
        raise SettingsError(f"tls_certificate {certificate} {what}") from None
    except ssl.SSLError as error:  # As of a key whose halves do not belong together, which loads.
        what = (error.reason or "OpenSSL refuses it").replace("_", " ").lower()
        raise SettingsError(f"tls_certificate {certificate} and its key do not work: {what}") from None
    return ssl.cert_time_to_seconds(shown["notAfter"])


def _shake_hands(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> dict[str, Any]:
    """The server's certificate, as this client has verified it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            _step(server)
    shown: dict[str, Any] = client.getpeercert() or {}
    return shown


def _step(server: ssl.SSLObject) -> None:
    try:
        server.do_handshake()
    except ssl.SSLWantReadError:
        return
