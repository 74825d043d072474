"""Run a command from a small process, and write its seconds and peak memory to a file.

    python bench/timed.py FILE COMMAND…

A process begins with the peak memory of the one that it was forked from: measured from a large one,
every command would be as large.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main(file: str, *command: str) -> int:
    start = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - start
    with open(file, "w", encoding="utf-8") as out:
        json.dump({"seconds": seconds, "peak_mb": usage.ru_maxrss / 1024}, out)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
