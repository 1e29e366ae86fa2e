# SPDX-License-Identifier: GPL-2.0-or-later
"""The program that libfsocket.so starts where an application's keeper was killed.

It finds the status page by its id, and the select programs that the kernel kept for their groups,
and goes on as the keeper of that application. It is run as a file, so that it needs neither the
environment nor the working directory of the application.
"""

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["SEPARATOR", "main", "resume_words"]

SEPARATOR = "\x1f"  # of native/preload/resume.c


def resume_words(pid: int, page: int, name: str) -> list[str]:
    """Return the command that resumes a keeper.

    Args:
        pid: The application's first process.
        page: The BPF map that is its status page.
        name: The keeper's socket, which the application's processes know and cannot be told anew.
    """
    return [sys.executable, str(Path(__file__).resolve()), str(pid), str(page), name]


def main(words: Sequence[str]) -> None:
    """Become the keeper, unless another process was quicker.

    Raises:
        BpfError: The page is gone, or no privilege.
    """
    from fastsocket.app.keeper import Keeper, become_keeper
    from fastsocket.app.scheduling import leave_batch
    from fastsocket.listen.page import StatusPage

    pid, number, name = int(words[0]), int(words[1]), words[2]
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        server.bind("\0" + name)
    except OSError:
        return
    server.listen(64)
    with suppress(OSError):  # the process that started this may have been pinned
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    leave_batch()
    page = StatusPage.reopen(number)
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # a daemon's first process is gone
        text = b""
    command = [word.decode(errors="replace") for word in text.split(b"\0")[:-1]]
    become_keeper(Keeper(page, server, pid, name, command or [f"process {pid}"], resumed=True))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main(sys.argv[1:])
