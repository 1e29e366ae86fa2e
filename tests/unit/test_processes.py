# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper's processes: whose descriptors are copied."""

import os
import socket
import subprocess
import sys
from unittest.mock import Mock

import pytest

from fastsocket.app.processes import SO_COOKIE, Processes

pytestmark = pytest.mark.unit


def test_a_process_without_the_descriptor_is_passed_over() -> None:
    """A wrapper shell, say, which is the application's first process."""
    with (
        subprocess.Popen(["sleep", "60"]) as wrapper,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        try:
            processes = Processes(Mock(), "name")
            for pid in (wrapper.pid, os.getpid()):
                assert processes.add(pid, vouched=True)
            number = server.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
            cookie = int.from_bytes(number, sys.byteorder)
            copy = processes.borrow(server.fileno(), cookie)
            assert copy
            assert copy.getsockname() == server.getsockname()
            copy.close()
            assert processes.borrow(server.fileno(), cookie + 1) is None
        finally:
            wrapper.kill()
