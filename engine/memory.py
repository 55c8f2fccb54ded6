"""Memory that other processes of this host can map: an anonymous file (memfd) behind one flat buffer."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from pathlib import Path

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedMemory:
    """A mapping of `size_bytes`, zero at first; a page takes memory once it is touched.

    The size is sealed, so that no mapping of it can ever fault. The memory lives as long as any process maps it:
    every tensor or array made from `buffer` keeps this process's mapping alive, after `close` too.
    """

    def __init__(self, fd: int, size_bytes: int):
        """Map `fd`, which this object owns from now on."""
        self.fd = fd
        self.size_bytes = size_bytes
        self._mapping: mmap.mmap | None = mmap.mmap(fd, size_bytes)

    @classmethod
    def create(cls, size_bytes: int) -> SharedMemory:
        """New memory, under a name that no other has (`name_of` its fd tells it)."""
        fd = os.memfd_create(f"penstock-{secrets.token_hex(8)}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            return cls(fd, size_bytes)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open(cls, pid: int, fd: int, name: str, size_bytes: int) -> SharedMemory:
        """Map what process `pid` holds as `fd`.

        OSError where that process is gone, out of reach, or holds something else under that number.
        """
        own = open_shared(pid, fd, name, size_bytes)
        try:
            return cls(own, size_bytes)
        except BaseException:
            os.close(own)
            raise

    @property
    def buffer(self) -> memoryview:
        """The memory, writable."""
        assert self._mapping is not None, "memory is not used after close"
        return memoryview(self._mapping)

    def close(self) -> None:
        """Close the file; the mapping goes with the last view of it. Idempotent."""
        if self._mapping is not None:
            self._mapping = None
            os.close(self.fd)


def open_shared(pid: int, fd: int, name: str, size_bytes: int) -> int:
    """Open the memory that process `pid` holds as `fd`, and return the own fd; OSError if it is not that memory."""
    own = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        # A process id or an fd that was used again names another file; the name and the seals tell.
        if (
            name_of(own) != name
            or os.fstat(own).st_size != size_bytes
            or ~fcntl.fcntl(own, fcntl.F_GET_SEALS) & SEALS
        ):
            raise FileNotFoundError(f"process {pid} no longer holds {name} of {size_bytes} bytes as fd {fd}")
    except BaseException:
        os.close(own)
        raise
    return own


def name_of(fd: int) -> str:
    """What the system calls an open file of this process."""
    return os.readlink(f"/proc/self/fd/{fd}")


def host_identity() -> str:
    """Equal in two processes that see the same `/proc`: this boot of the machine, and the process id namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
