"""Certificates for tests, of an authority that each test makes for itself."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PEM = serialization.Encoding.PEM


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def key_text(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption)


@dataclass
class Authority:
    """Issues certificates for localhost; `file` is its own."""

    folder: Path
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.file = self.folder / "authority.pem"
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._build("authority", self.key, 0, 1).add_extension(constraints, critical=True)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        certificate = certificate.add_extension(usage, critical=True)
        self.file.write_bytes(certificate.sign(self.key, hashes.SHA256()).public_bytes(PEM))

    def issue(
        self, certificate: Path, key: Path, *, start: int = 0, days: int = 1, password: bytes | None = None
    ) -> None:
        """Write a certificate and its key; `start` in days from now."""
        private = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        built = self._build("localhost", private, start, days)
        built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        signed = built.add_extension(issuer, critical=False).sign(self.key, hashes.SHA256())
        key.touch(0o600)
        key.write_bytes(key_text(private, password))
        certificate.write_bytes(signed.public_bytes(PEM))

    def context(self) -> ssl.SSLContext:
        """What a client trusts."""
        return ssl.create_default_context(cafile=self.file)

    def _build(self, name: str, key: ec.EllipticCurvePrivateKey, start: int, days: int) -> x509.CertificateBuilder:
        first = datetime.now(UTC) + timedelta(days=start, minutes=-5)
        return x509.CertificateBuilder(
            issuer_name=named("authority"),
            subject_name=named(name),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=first,
            not_valid_after=first + timedelta(days=days),
        ).add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
