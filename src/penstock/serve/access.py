"""Who may ask what: one table, and the callers that a token makes known.

A caller says `Authorization: Bearer TOKEN`. It is looked at when the head has come and before any of
the body has. What a connection said before and was let in with is a head that is known (door.py):
those bytes are not hashed again until tokens are read anew.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from hmac import compare_digest

from penstock.serve.answers import CHALLENGE, INVALID_TOKEN, Refusal
from penstock.serve.tokens import ROLES, Token, digest_of

# The roles that open each route; `admin` opens all, and without any (None) a route is open to everybody.
OPENED_BY: dict[str, tuple[str, ...] | None] = {
    "decide": ("decide", "admin"),
    "dry_run": ("decide", "admin"),
    "decisions": ("decide", "query", "admin"),
    "events": ("ingest", "admin"),
    "deadletters": ("ingest", "admin"),
    "positions": ("admin",),
    "metrics": ("query", "admin"),
    "healthz": None,
    "readyz": None,
}

BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/=-]{1,200})", re.IGNORECASE)


class AccessRefused(Refusal):
    """A caller that is not known, or may not ask this: its body need not be read."""


class Caller:
    """One who asks, with the roles that count; `unknown` says why they are none."""

    __slots__ = ("_refusals", "_roles", "_unknown")

    def __init__(self, roles: Iterable[str], refusals: Counter[str], unknown: str = "") -> None:
        self._roles = frozenset(roles)
        self._refusals = refusals
        self._unknown = unknown

    def check(self, route: str) -> None:
        """Raise `AccessRefused` where this route is not open to this caller."""
        opened_by = OPENED_BY[route]
        if opened_by is None:
            return
        self.check_known()
        if self._roles.isdisjoint(opened_by):
            self._refusals["missing_role"] += 1
            role, *_ = opened_by
            wanted = " or ".join(opened_by)
            raise AccessRefused("missing_role", f"this path takes a token with the role {wanted}", role=role)

    def check_known(self) -> None:
        """Raise `AccessRefused` for one without a token, or with a wrong one: it learns nothing of what there is."""
        if not self._unknown:
            return
        self._refusals[self._unknown] += 1
        if self._unknown == "no_token":
            message = "this path takes a token: Authorization: Bearer TOKEN"
            raise AccessRefused("no_token", message, CHALLENGE)
        raise AccessRefused("invalid_token", "this token is not known here, or no longer", INVALID_TOKEN)


class Access:
    """The tokens in force; with None everybody may ask everything. Refused callers are counted by reason."""

    def __init__(self, tokens: Iterable[Token] | None, refusals: Counter[str]) -> None:
        self._everybody = Caller(ROLES, refusals) if tokens is None else None
        self._callers = [(token.digest, Caller(token.roles, refusals)) for token in tokens or ()]
        self._without = Caller((), refusals, "no_token")
        self._wrong = Caller((), refusals, "invalid_token")

    def caller(self, authorization: bytes | None) -> Caller:
        """Who says this; None is no such header."""
        if self._everybody is not None:
            return self._everybody
        if authorization is None:
            return self._without
        found = BEARER.fullmatch(authorization.strip())
        return self._wrong if found is None else self._known(digest_of(found.group(1)))

    def _known(self, digest: bytes) -> Caller:
        """Compared with all of them, each in constant time: how long it takes says nothing."""
        caller = self._wrong
        for each, known in self._callers:
            if compare_digest(each, digest):
                caller = known
        return caller
