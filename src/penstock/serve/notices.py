"""What operators are told of as it happens, and readiness does not depend on: topics that keep dead letters."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("penstock.serve")

NOTICE_NS = 60_000_000_000


class DeadLetterNotice:
    """Says which topics have new dead letters: at once, and then once a minute at most."""

    def __init__(self) -> None:
        self._said: dict[str, int] = {}
        self._quiet_until_ns = 0

    def look(self, stats: dict[str, Any], now_ns: int) -> None:
        if now_ns < self._quiet_until_ns:
            return
        for topic, counts in stats.get("dead_letters", ()):
            lost = counts["kept"] + counts["dropped"]
            new = lost - self._said.get(topic, 0)
            if new:
                self._said[topic] = lost
                self._quiet_until_ns = now_ns + NOTICE_NS
                logger.warning(
                    'topic "%s" rejected %d events since this was said last; penstock deadletters list %s',
                    topic,
                    new,
                    topic,
                )
