"""A file system that hands everything on to a folder, and fails what it is told to with EIO.

    python tests/passthrough.py FOLDER MOUNTPOINT FAULTS

FAULTS is a folder: while it has a file `read`, `write` or `fsync`, such a call fails for every path in which the file's
text is found.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mfusepy

STAT = ("st_atime", "st_ctime", "st_gid", "st_mode", "st_mtime", "st_nlink", "st_size", "st_uid", "st_ino")
STATFS = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize", "f_namemax")


class Passthrough(mfusepy.Operations):
    def __init__(self, folder: Path, faults: Path) -> None:
        self.folder, self.faults = folder, faults

    def there(self, path: str) -> str:
        return f"{self.folder}{path}"

    def may(self, what: str, path: str) -> None:
        try:
            text = (self.faults / what).read_text()
        except FileNotFoundError:
            return
        if text in path:
            raise mfusepy.FuseOSError(errno.EIO)

    # Files.

    def open(self, path: str, flags: int) -> int:
        return os.open(self.there(path), flags & ~os.O_DIRECT)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self.there(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self.may("read", path)
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self.may("write", path)
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self.there(path), length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self.may("fsync", path)
        (os.fdatasync if datasync else os.fsync)(fh)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    # Names.

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self.there(path))
        return {name: getattr(found, name) for name in STAT}

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        yield from [".", "..", *os.listdir(self.there(path))]

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self.there(path), mode)
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self.there(path))
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self.there(old), self.there(new))
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        folder = os.open(self.there(path), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self.there(path), mode)
        return 0

    def utimens(self, path: str, times: tuple[float, float] | None = None) -> int:
        os.utime(self.there(path), times)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self.there(path))
        return {name: getattr(found, name) for name in STATFS}


if __name__ == "__main__":
    source, mountpoint, faults = (Path(argument).resolve() for argument in sys.argv[1:])
    # Each read comes here: what the kernel has kept of a file would never fail.
    mfusepy.FUSE(Passthrough(source, faults), str(mountpoint), foreground=True, nothreads=True, direct_io=True)
