"""What leaves the door: status lines and headers made once, and refusals in one shape.

Every error, the door's and the core's, is `{"error": {"code": …, "message": …}}`; a code has one
status.
"""

from __future__ import annotations

import json
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from penstock.runtime.gate import REPEAT

# The form of an answer, as bits: what its head says beside status and length.
CLOSE = 2  # beside the core's REPEAT, which goes on as it is
NO_BODY = 4
NDJSON = 8
TEXT = 16
ALLOW_GET = 32
ALLOW_POST = 64
CHALLENGE = 128
INVALID_TOKEN = 256

CODES: dict[str, HTTPStatus] = {
    "malformed_request": HTTPStatus.BAD_REQUEST,
    "unknown_parameter": HTTPStatus.BAD_REQUEST,
    "no_token": HTTPStatus.UNAUTHORIZED,
    "invalid_token": HTTPStatus.UNAUTHORIZED,
    "missing_role": HTTPStatus.FORBIDDEN,
    "unknown_path": HTTPStatus.NOT_FOUND,
    "unknown_policy": HTTPStatus.NOT_FOUND,
    "unknown_topic": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "request_timeout": HTTPStatus.REQUEST_TIMEOUT,
    "body_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "url_too_long": HTTPStatus.REQUEST_URI_TOO_LONG,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "unsupported_encoding": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "expectation_failed": HTTPStatus.EXPECTATION_FAILED,
    "rate_limited": HTTPStatus.TOO_MANY_REQUESTS,
    "overloaded": HTTPStatus.TOO_MANY_REQUESTS,
    "too_many_connections": HTTPStatus.TOO_MANY_REQUESTS,
    "headers_too_large": HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "internal_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "not_ready": HTTPStatus.SERVICE_UNAVAILABLE,
    "not_answered": HTTPStatus.SERVICE_UNAVAILABLE,
    "core_failed": HTTPStatus.SERVICE_UNAVAILABLE,
}

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_HEADERS = {
    REPEAT: b"Penstock-Repeat: 1\r\n",
    ALLOW_GET: b"Allow: GET, HEAD\r\n",
    ALLOW_POST: b"Allow: POST\r\n",
    # RFC 6750, 3: what to say with the request, and why what was said will not do.
    CHALLENGE: b'WWW-Authenticate: Bearer realm="penstock"\r\n',
    INVALID_TOKEN: b'WWW-Authenticate: Bearer realm="penstock", error="invalid_token"\r\n',
}
_RETRY_LATER = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_HEADS_MAX = 4_096


class Refusal(Exception):
    """A request that the door answers with an error; raised where reading must stop at once."""

    def __init__(self, code: str, message: str, form: int = 0, **more: Any) -> None:
        super().__init__(message)
        self.status = int(CODES[code])
        self.form = form
        self.body = error_body(code, message, **more)


def error_body(code: str, message: str, **more: Any) -> bytes:
    """The one shape of every error."""
    return json.dumps({"error": {"code": code, "message": message, **more}}).encode()


class Answers:
    """Makes answers' bytes. Heads are kept by status, length and form until their date changes."""

    __slots__ = ("_date", "_heads")

    def __init__(self) -> None:
        self._heads: dict[tuple[int, int, int], bytes] = {}
        self._date = b""
        self.set_date(0)

    def make(self, status: int, body: bytes, form: int) -> bytes:
        key = (status, len(body), form)
        head = self._heads.get(key) or self._head(key)
        return head if form & NO_BODY else head + body

    def set_date(self, seconds: float) -> None:
        """The time that answers carry from now on (RFC 9110, 6.6.1)."""
        date = formatdate(seconds, usegmt=True).encode()
        if date != self._date:
            self._date = date
            self._heads.clear()

    def _head(self, key: tuple[int, int, int]) -> bytes:
        if len(self._heads) >= _HEADS_MAX:
            self._heads.clear()
        self._heads[key] = head = _head(*key, self._date)
        return head


def _head(status: int, length: int, form: int, date: bytes) -> bytes:
    lines = [
        b"HTTP/1.1 %d %s\r\n" % (status, _phrase(status)),
        b"Date: %s\r\n" % date,
        b"Content-Type: %s\r\n" % _media_type(status, form),
        b"Content-Length: %d\r\n" % length,
        # Said always, because a client of HTTP/1.0 needs to hear it.
        b"Connection: close\r\n" if form & CLOSE else b"Connection: keep-alive\r\n",
        b"Retry-After: 1\r\n" if status in _RETRY_LATER else b"",
        *(line for bit, line in _HEADERS.items() if form & bit),
        b"\r\n",
    ]
    return b"".join(lines)


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Unknown"


def _media_type(status: int, form: int) -> bytes:
    if form & TEXT:
        return b"text/plain; version=0.0.4; charset=utf-8"
    # The core answers a body that cannot be read with one JSON error, whatever was sent.
    return b"application/x-ndjson" if form & NDJSON and status == 200 else b"application/json"
