"""Tokens and certificate as they are in force: read at start, and anew on SIGHUP or when a file has changed.

At start what is wrong with a file is an error; later it is logged, and what was in force stays.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from penstock.errors import SettingsError
from penstock.serve.access import Access
from penstock.serve.certificate import Certificate
from penstock.serve.settings import DoorSettings
from penstock.serve.tokens import read_tokens

logger = logging.getLogger("penstock.serve")

# What tells one version of a file from another; None where there is no such file.
Stamp = tuple[int, int, int] | None


class Guard:
    """The tokens and the certificate in force, and how many callers were refused why. Raises `SettingsError`."""

    def __init__(self, settings: DoorSettings) -> None:
        self.refusals: Counter[str] = Counter()
        self.handshakes_failed = 0
        files = (settings.tokens, settings.tls_certificate, settings.tls_key)
        self.files = [path for path in files if path is not None]
        self._settings = settings
        # Looked at before they are read: what changes in between is then read again.
        self._stamps = self._look()
        self.access = self._read_access()
        self.certificate = self._read_certificate()

    def changed(self) -> bool:
        """Whether a file is another than the one that was read last, or tried last."""
        return self._look() != self._stamps

    def reload(self) -> bool:
        """Read the files anew; whether what they say is in force now."""
        self._stamps = self._look()
        try:
            access, certificate = self._read_access(), self._read_certificate()
        except SettingsError as error:
            logger.error("%s; what was read before stays in force", error.message)
            return False
        self.access, self.certificate = access, certificate
        logger.info("read anew: %s", ", ".join(map(str, self.files)))
        return True

    def _read_access(self) -> Access:
        path = self._settings.tokens
        return Access(None if path is None else read_tokens(path), self.refusals)

    def _read_certificate(self) -> Certificate | None:
        certificate, key = self._settings.tls_certificate, self._settings.tls_key
        return None if certificate is None or key is None else Certificate(certificate, key)

    def _look(self) -> list[Stamp]:
        return [_stamp(path) for path in self.files]


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    # The time of its inode: a change of its mode or owner counts as well.
    return found.st_ino, found.st_size, found.st_ctime_ns
