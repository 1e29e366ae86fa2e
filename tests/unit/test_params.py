# SPDX-License-Identifier: GPL-2.0-or-later
"""load and unload, in a folder of the test's own; that root is needed is tested as nobody."""

import os
from pathlib import Path

import msgspec
import pytest

from fastsocket import config
from fastsocket.config import Parameters
from fastsocket.errors import ConflictError, FastsocketError, MissingFeatureError, UsageError
from fastsocket.host import journal, params

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The owner of the test's folder stands in for root, whoever runs the tests.
    monkeypatch.setattr(params, "_require_root", lambda verb: None)
    monkeypatch.setattr(config, "SYSTEM_CONFIG", tmp_path / "etc.toml")
    return tmp_path / "run"


def texts(run: Path) -> list[str]:
    return [entry.text for entry in journal.entries(run)]


def test_load_then_unload_leaves_nothing(run: Path) -> None:
    before = set(run.parent.rglob("*"))
    wanted = Parameters(enable_receive_flow_deliver=1, slack=3)
    changes = params.load(wanted, run)
    assert [(c.action, c.path) for c in changes] == [
        ("create", str(run)),
        ("create", str(run / "params.json")),
    ]
    assert all(change.why for change in changes)
    assert params.loaded(run) == wanted
    assert [c.path for c in params.unload(run)] == [
        str(run / "params.json"),
        str(run / "log"),
        str(run),
    ]
    assert set(run.parent.rglob("*")) == before


def test_the_file_holds_every_field(run: Path) -> None:
    params.load(Parameters(), run)
    document = msgspec.json.decode((run / "params.json").read_bytes())
    assert document == msgspec.to_builtins(Parameters())
    assert (run / "params.json").stat().st_mode & 0o777 == 0o644


def test_the_log_has_the_lines_of_2014(run: Path) -> None:
    params.load(Parameters(enable_receive_flow_deliver=1, enable_fast_epoll=1), run)
    assert texts(run) == [
        "Fastsocket: Load",
        "Fastsocket: Enable Listen Spawn[Mode-2]",
        "Fastsocket: Enable Receive Flow Deliver",
        "Fastsocket: Enable Fast Epoll",
    ]
    assert params.log_lines(Parameters(enable_listen_spawn=0)) == ["Load"]


def test_loading_the_same_again_changes_nothing(run: Path) -> None:
    params.load(Parameters(), run)
    assert params.load(Parameters(), run) == []
    assert texts(run).count("Fastsocket: Load") == 1
    (change,) = params.load(Parameters(slots=2), run)
    assert change.action == "replace"
    assert params.loaded(run) == Parameters(slots=2)


def test_dry_runs_say_the_same_and_do_nothing(run: Path) -> None:
    planned = params.load(Parameters(), run, dry_run=True)
    assert not run.exists()
    assert params.load(Parameters(), run) == planned
    kept = sorted(run.iterdir())
    planned = params.unload(run, dry_run=True)
    assert sorted(run.iterdir()) == kept
    assert params.unload(run) == planned


def test_unload_keeps_what_is_not_ours(run: Path) -> None:
    params.load(Parameters(), run)
    (run / "keeper.sock").write_text("")
    changes = params.unload(run)
    assert str(run) not in [change.path for change in changes]
    assert [path.name for path in run.iterdir()] == ["keeper.sock"]


def test_unload_without_load(run: Path) -> None:
    assert params.unload(run) == []


def test_the_order_of_sources(run: Path, tmp_path: Path) -> None:
    assert params.host_parameters(folder=run) == Parameters()
    (tmp_path / "etc.toml").write_text("slots = 1\n")
    assert params.host_parameters(folder=run).slots == 1
    params.load(Parameters(slots=2), run)
    assert params.host_parameters(folder=run).slots == 2
    (tmp_path / "given.toml").write_text("slots = 3\n")
    assert params.host_parameters(tmp_path / "given.toml", run).slots == 3


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"{", ConflictError),
        (b"[]", ConflictError),
        (b'{"slots": -1}', UsageError),
        (b'{"nothing": 1}', UsageError),
    ],
)
def test_a_damaged_file_is_named_and_can_be_replaced(
    run: Path, content: bytes, error: type[FastsocketError]
) -> None:
    params.load(Parameters(), run)
    (run / "params.json").write_bytes(content)
    with pytest.raises(error, match=r"params\.json"):
        params.loaded(run)
    params.load(Parameters(slots=4), run)
    assert params.loaded(run) == Parameters(slots=4)


def test_a_file_that_others_can_write_is_not_believed(run: Path) -> None:
    params.load(Parameters(), run)
    (run / "params.json").chmod(0o666)
    with pytest.raises(ConflictError, match="others than root can write it"):
        params.loaded(run)


def test_a_link_is_not_followed(run: Path) -> None:
    params.load(Parameters(), run)
    (run / "params.json").rename(run / "elsewhere")
    (run / "params.json").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        params.loaded(run)


def test_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for verb in (lambda: params.load(Parameters(), tmp_path), lambda: params.unload(tmp_path)):
        with pytest.raises(MissingFeatureError, match="not root") as info:
            verb()
        assert info.value.exit_code == 3
