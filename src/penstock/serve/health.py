"""Whether the process lives, and whether it should be sent anything: two different questions.

A process that lives and whose gate stands still must say so itself; from outside both look running.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from time import monotonic_ns, time
from typing import Any

from penstock.runtime.models import Models, Worker
from penstock.runtime.snapshots import Snapshots
from penstock.serve.answers import error_body
from penstock.serve.door import Door

WARN_FROM = 0.8
# A topic so far behind those whose events it reads is named where the state is large.
HOLDS_FROM_S = 3_600.0
EXPIRY_WARNED_S = 14 * 86_400


class Health:
    """`GET /healthz` and `GET /readyz`."""

    def __init__(self, *, door: Door, models: Models, snapshots: Snapshots) -> None:
        self._door = door
        self._models = models
        self._snapshots = snapshots
        self._beat = -1
        self._moved_ns = monotonic_ns()

    def alive(self) -> tuple[int, bytes, int]:
        return 200, b'{"alive": true}', 0

    def ready(self) -> tuple[int, bytes, int]:
        stats = self._door.relay.core_stats()
        reasons = list(self._reasons(stats))
        if reasons:
            return 503, error_body("not_ready", "; ".join(reasons), reasons=reasons), 0
        warnings = [*state_warnings(stats), *self._model_warnings(), *self._warnings(stats)]
        return 200, json.dumps({"ready": True, "warnings": warnings}).encode(), 0

    def watch(self, now_ns: int) -> None:
        """Notice whether the core moves; called with every tick."""
        if self._door.relay.pending:
            self._note(self._door.relay.core_stats(), now_ns)
        else:
            self._moved_ns = now_ns

    def _note(self, stats: dict[str, Any], now_ns: int) -> None:
        # Requests that the core has taken may wait for their model: that is not the core's standing still.
        if stats["beat"] != self._beat or not stats["queued"]:
            self._beat = stats["beat"]
            self._moved_ns = now_ns

    def _reasons(self, stats: dict[str, Any]) -> Iterator[str]:
        now_ns = monotonic_ns()
        self._note(stats, now_ns)
        if self._door.stopping:
            yield "the gate is stopping"
        if now_ns - self._moved_ns > self._door.settings.stuck_s * 1e9:
            waiting = len(self._door.relay.pending)
            still_s = (now_ns - self._moved_ns) / 1e9
            yield f"the gate has stood still for {still_s:.0f} s with {waiting:,} requests waiting"
        if stats["failed"] is not None:
            yield f"the gate has ended: {stats['failed']}"
        if stats["full"] is not None:
            yield f"nothing is taken at present: {stats['full']}"
        for worker in self._models.workers:
            if not worker.proven:
                yield lasting_trouble(worker)

    def _warnings(self, stats: dict[str, Any]) -> Iterator[str]:
        yield from self._snapshots.warnings(stats["log_sequence"])
        certificate = self._door.guard.certificate
        if certificate is not None and certificate.expires_s - time() < EXPIRY_WARNED_S:
            expires = datetime.fromtimestamp(certificate.expires_s, UTC)
            yield f"the certificate in force expires at {expires:%Y-%m-%d %H:%M} UTC"
        if stats["removal_failed"] is not None:
            yield f"old files stay for now: {stats['removal_failed']}"
        if stats["ids_damaged"] is not None:
            yield f"some ids cannot be known until the next start makes their files again: {stats['ids_damaged']}"
        if stats["ids_unmerged"] is not None:
            yield f"files of ids are not merged for now: {stats['ids_unmerged']}"

    def _model_warnings(self) -> Iterator[str]:
        """One that has been up is started again meanwhile: its policies have their fallback, others need it not."""
        for worker in self._models.workers:
            if worker.proven and not worker.ready:
                yield lasting_trouble(worker)


def trouble(worker: Worker) -> str:
    return f'model "{worker.spec.name}" is not up: {worker.trouble}'


def lasting_trouble(worker: Worker) -> str:
    return f"{trouble(worker)}, for {worker.down_s:,.0f} s"


def state_warnings(stats: dict[str, Any]) -> Iterator[str]:
    """How full the state is and, where that is much, which topics keep it from freeing events."""
    size, limit = stats["state_bytes"], stats["state_bytes_max"]
    if not limit or size < WARN_FROM * limit:
        return
    full = "the state is full: new keys get the fallback"
    yield full if size >= limit else f"the state is {size / limit:.0%} full"
    for topic, lag_s in stats["reader_lags"]:
        if lag_s is None:
            yield f'topic "{topic}" has had no event: what it reads is kept for it'
        elif lag_s > HOLDS_FROM_S:
            yield f'topic "{topic}" is {lag_s / 3600:,.1f} h behind: what it reads is kept for it'
