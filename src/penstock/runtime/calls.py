"""What our own commands ask of a running service, with the token that the environment holds."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from penstock.errors import InputError, SettingsError
from penstock.settings import TOKEN

ANSWER_S = 10.0


def post(
    url: str,
    path: str,
    body: bytes,
    *,
    media_type: str = "application/json",
    timeout_s: float = ANSWER_S,
    environment: Mapping[str, str] = os.environ,
) -> Any:
    """The JSON that a service at this URL answers. Raises `InputError` where it refuses or does not answer."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise SettingsError("the URL of a service begins with http:// or https://")
    request = urllib.request.Request(url + path, body, {"Content-Type": media_type})
    token = read_token(environment)
    if token:
        _check_private(url)
        # Not to be said again where an answer leads elsewhere.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        hint = f"the environment variable {TOKEN} holds the token" if error.code in (401, 403) else None
        raise InputError(f"the service refused it: {_message(error)}", hint=hint) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise InputError(
                f"the certificate of {url} is not trusted: {reason.verify_message}",
                hint="--url has the name that it is for, and the variable SSL_CERT_FILE its issuer's file",
            ) from None
        raise InputError(
            f"the service does not answer at {url}", hint="give its --host and --port, or its --url"
        ) from None
    except ValueError:
        raise InputError(f"what answers at {url} is no service of Penstock") from None


def read_token(environment: Mapping[str, str] = os.environ) -> str:
    """What to say to a service; empty where nothing is set. Raises `SettingsError`, without what it is."""
    token = environment.get(TOKEN, "")
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]*", token):
        raise SettingsError(f"{TOKEN} is no token: it holds spaces or other characters that none has")
    return token


def _check_private(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not _loopback(parts.hostname or ""):
        raise SettingsError(f"a token is not sent to {url}, where others can read along", hint="use an https:// URL")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _message(error: urllib.error.HTTPError) -> str:
    try:
        message: str = json.load(error)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"status {error.code}"
    return message
