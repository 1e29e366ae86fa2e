# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands log, load, unload, doctor and nic plan: documents, texts and exit codes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fastsocket import config
from fastsocket.cli import log as log_command
from fastsocket.cli.fold import fold
from fastsocket.cli.main import main
from fastsocket.host import params

pytestmark = pytest.mark.unit

HOST = str(Path(__file__).parents[1] / "golden/nic/ixgbe-24-cores-2-nodes.json")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    load, unload = params.load, params.unload
    monkeypatch.setattr(params, "_require_root", lambda verb: None)
    monkeypatch.setattr(params, "load", lambda p, dry_run: load(p, folder, dry_run))
    monkeypatch.setattr(params, "unload", lambda dry_run: unload(folder, dry_run))
    monkeypatch.setattr(log_command, "HOST_DIR", folder)
    monkeypatch.setattr(log_command, "runtime_dir", lambda: folder)
    monkeypatch.setattr(config, "SYSTEM_CONFIG", tmp_path / "none.toml")
    return folder


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*words: str) -> str:
        main(list(words))
        return capsys.readouterr().out

    return call


def test_from_load_to_unload(run: Path, out: Callable[..., str]) -> None:
    assert f"create {run}" in out("load", "enable_listen_spawn=1", "policy=hash")
    assert json.loads((run / "params.json").read_text())["policy"] == "hash"
    assert "Fastsocket: Enable Listen Spawn[Mode-1]" in out("log")
    assert "loaded already" in out("load", "enable_listen_spawn=1", "policy=hash")
    assert f"remove {run}" in out("unload")
    assert not run.exists()
    assert out("log") == ""
    assert "nothing was loaded" in out("unload")


def test_json(run: Path, out: Callable[..., str]) -> None:
    document = json.loads(out("load", "slots=2", "--json"))
    assert document["parameters"]["slots"] == 2
    assert [change["action"] for change in document["changes"]] == ["create", "create"]
    entries = json.loads(out("log", "--json"))["entries"]
    assert entries[0]["text"] == "Fastsocket: Load"
    assert len(json.loads(out("log", "--json", "-n", "1"))["entries"]) == 1
    assert json.loads(out("log", "--json", "-n", "0"))["entries"] == []
    assert len(json.loads(out("unload", "--json"))["changes"]) == 3


def test_dry_runs(run: Path, out: Callable[..., str]) -> None:
    assert out("load", "--dry-run").startswith(f"would create {run}")
    assert not run.exists()
    assert json.loads(out("load", "--dry-run", "--json"))["dry_run"] is True
    out("load")
    assert f"would remove {run}" in out("unload", "--dry-run")
    assert run.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["load", "slots"], "'slots' is not PARAMETER=VALUE"),
        (["load", "slots=x"], 'the command line: slots = "x" is not allowed; allowed: 0 ('),
        (["load", "sluts=1"], "unknown parameter 'sluts'"),
        (["load", "--config", "/no/such.toml"], "/no/such.toml: cannot be read"),
        (["log", "-n", "-1"], "-1 is not in the range"),
        (["doctor", "0"], "0 is not in the range"),
        (["doctor", "4194305"], "no process 4194305"),
        (["doctor", "--seconds", "0"], "not in the range"),
        (["doctor", "--facts", "/dev/null"], "/dev/null holds no host facts"),
        (["doctor", "--facts", HOST, "1"], "a recorded host cannot be watched"),
        (["doctor", "-i", "nope"], "there is no interface nope; choose one of"),
        (["doctor", "--measure", "1", "-i", "lo"], "one server at a time"),
        (["nic", "plan"], "name an interface with -i, or saved facts with --facts"),
        (["nic", "plan", "--facts", "/dev/null"], "/dev/null holds no host facts"),
        (["nic", "plan", "--facts", HOST, "--profile", "fast"], "there is no profile fast"),
        (["nic", "plan", "--facts", HOST, "--cpus", "a-b"], "a-b is no list of CPUs"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as info:
        main(words)
    assert info.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_doctor(out: Callable[..., str]) -> None:
    text = out("doctor", "--seconds", "0.1")
    assert "Would Fastsocket help this host?" in text
    document = json.loads(out("doctor", "--seconds", "0.1", "--json"))
    assert document["verdict"] in ("yes", "perhaps", "unlikely")
    assert {check["name"] for check in document["checks"]} >= {"cores", "kernel-share", "card"}
    assert document["server"] is None
    assert document["load"]["seconds"] >= 0.1


def test_doctor_of_a_recorded_host(
    out: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(out("doctor", "--facts", HOST, "--json"))
    assert document["verdict"] == "yes" and document["host"]["cpus"] == 24
    monkeypatch.setenv("COLUMNS", "80")
    lines = out("doctor", "--facts", HOST).splitlines()
    assert "Would Fastsocket help the recorded host? Yes." in lines
    assert max(map(len, lines)) <= 80 and lines[1] == " " * 27 + "sockets stop scaling"


@pytest.mark.parametrize(("columns", "lines"), [("", 1), ("80", 2), ("9", 4)])
def test_long_lines_are_folded_for_a_terminal(
    columns: str, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = "  why:  " + "twelve words " * 7 + "/a/path/that/is/not/torn/apart"
    folded = fold(f"head\n{text}")
    first, *rest = folded.split("\n")[1:]
    assert " ".join([first, *(line.strip() for line in rest)]) == text
    assert len(rest) == lines - 1 and all(re.match(r" {8}\S", line) for line in rest)
