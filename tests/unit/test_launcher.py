# SPDX-License-Identifier: GPL-2.0-or-later
"""What a launch that fails leaves behind, and what one says of its host."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from fastsocket.app import launcher
from fastsocket.config import Parameters
from fastsocket.errors import FastsocketError

pytestmark = pytest.mark.unit


def test_a_launch_that_fails_takes_its_cgroup_away(monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = Mock(hooks=object(), environment={})
    monkeypatch.setattr(launcher, "_deliver", lambda preloads: deliver)
    monkeypatch.setattr(launcher, "StatusPage", Mock(side_effect=FastsocketError("no page")))
    with pytest.raises(FastsocketError, match="no page"):
        launcher.launch(["true"], Parameters(enable_receive_flow_deliver=1))
    deliver.close.assert_called_once_with()
    deliver.enter.assert_not_called()


@pytest.mark.parametrize(
    ("setting", "lacks"),
    [
        ("0\n", "clients and servers: sysctl -w net.ipv4.tcp_fastopen=3 allows it"),
        ("1\n", "servers: sysctl -w net.ipv4.tcp_fastopen=3 allows it"),
        ("1026\n", "clients: sysctl -w net.ipv4.tcp_fastopen=1027 allows it"),
        ("3\n", ""),
    ],
)
def test_who_may_not_use_fast_open(setting: str, lacks: str) -> None:
    assert launcher.fast_open_lacks(setting) == lacks


def test_what_the_library_would_do_is_named_where_it_is_not_preloaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launcher.os, "execve", Mock(side_effect=OSError(2, "stopped here")))
    with pytest.raises(FastsocketError, match="stopped here"):
        launcher.launch(["true"], Parameters(enable_listen_spawn=0, enable_fast_epoll=1))
    said = capsys.readouterr().err
    assert said == "fastsocket: fast epoll: not used, for listen spawn is off\n"


def test_the_environment_switches_nothing_on_that_the_parameters_leave_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTSOCKET_LEAN", "fast-open")
    monkeypatch.setenv("FASTSOCKET_BUSY_POLL", "50")
    environment = launcher._environment(Path("/usr/lib/libfsocket.so"), Parameters())
    assert environment["FASTSOCKET_LEAN"] == ""
    assert environment["FASTSOCKET_BUSY_POLL"] == "0"
