# SPDX-License-Identifier: GPL-2.0-or-later
"""`fastsocket nic` on veth in a namespace: applied, read back, undone; killed; refused."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.netns

HERE = Path(__file__).parent
CLI = "from fastsocket.cli.main import main; main()"
QUEUES = 4


class Namespace:
    """A network namespace with a veth pair v0 - v1 of four queues each."""

    def __init__(self, name: str, state: Path) -> None:
        self.name, self.state = name, state
        self._environment = dict(os.environ)
        path = [str(HERE.parents[1] / "src"), str(HERE)]
        self._environment["PYTHONPATH"] = os.pathsep.join(path)

    def run(self, *command: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *prefix, *command],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=self._environment,
        )

    def must(self, *command: str) -> str:
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def nic(self, *words: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        stateful = ("--state", str(self.state)) if words[0] in ("apply", "undo") else ()
        return self.run(sys.executable, "-c", CLI, "nic", *words, *stateful, prefix=prefix)

    def json(self, *words: str) -> dict[str, object]:
        done = self.nic(*words, "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert isinstance(document, dict)
        return document

    def state_now(self) -> dict[str, str]:
        code = "import json; from nic_state import state_of; print(json.dumps(state_of('v0')))"
        found = json.loads(self.must(sys.executable, "-c", code))
        assert isinstance(found, dict)
        return found


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    name = f"fsnic{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        space = Namespace(name, tmp_path / "state")
        counts = ("numtxqueues", str(QUEUES), "numrxqueues", str(QUEUES))
        space.must(
            "ip", "link", "add", "v0", *counts, "type", "veth", "peer", "name", "v1", *counts
        )
        for interface in ("lo", "v0", "v1"):
            space.must("ip", "link", "set", interface, "up")
        yield space
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def tracked(namespace: Namespace) -> Namespace:
    """A namespace in which connections are tracked, with one that is."""
    namespace.must("nft", "add table inet filter")
    chain = "add chain inet filter in { type filter hook input priority 0; }"
    namespace.must("nft", chain)
    namespace.must("nft", "add rule inet filter in ct state established accept")
    connect = (
        "import socket; s = socket.create_server(('127.0.0.1', 8080));"
        "socket.create_connection(s.getsockname()).close()"
    )
    namespace.must(sys.executable, "-c", connect)
    return namespace


def test_apply_is_read_back_and_undone_byte_for_byte(tracked: Namespace) -> None:
    before = tracked.state_now()
    plan = tracked.json("plan", "-i", "v0", "--port", "80", "--port", "443")
    dry = tracked.json("apply", "-i", "v0", "--port", "80", "--port", "443", "--dry-run")
    assert dry == {"dry_run": True, "plan": plan} and tracked.state_now() == before
    done = tracked.json("apply", "-i", "v0", "--port", "80", "--port", "443")
    assert done["plan"]["changes"] == plan["changes"]  # type: ignore[index]
    kinds = {line["setting"]["kind"] for line in plan["changes"]}  # type: ignore[attr-defined]
    cpus = len(os.sched_getaffinity(0))
    assert {"sysctl", "notrack"} <= kinds
    assert ("channels" in kinds) == (cpus != QUEUES)
    channels = tracked.must("ethtool", "-l", "v0").rpartition("Current")[2]
    assert f"RX:\t\t{min(cpus, QUEUES)}" in channels
    xps = tracked.must("cat", "/sys/class/net/v0/queues/tx-1/xps_cpus")
    assert int(xps.replace(",", ""), 16) or cpus == 1
    assert tracked.must("cat", "/proc/sys/net/core/somaxconn") == "16384\n"
    assert "tcp dport @ports notrack" in tracked.must("nft", "list", "ruleset")
    assert tracked.json("plan", "-i", "v0", "--port", "80", "--port", "443")["changes"] == []
    again = tracked.json("apply", "-i", "v0", "--port", "80", "--port", "443")
    assert again["plan"]["changes"] == []  # type: ignore[index]
    assert tracked.json("undo", "-i", "v0", "--dry-run")["restore"]
    undone = tracked.json("undo", "-i", "v0")
    assert undone["restored"] and not undone["foreign"] and not undone["gone"]
    after = tracked.state_now()
    differences = [name for name in before | after if before.get(name) != after.get(name)]
    assert differences == []
    assert tracked.nic("undo", "-i", "v0").stdout == "nothing to undo for v0\n"


def test_killed_at_every_step(tracked: Namespace, tmp_path: Path) -> None:
    script = str(HERE / "nic_kills.py")
    result = json.loads(tracked.must(sys.executable, script, "v0", str(tmp_path / "kills")))
    assert result["wrong"] == []
    assert result["kills"]["apply"] >= 3 and result["kills"]["undo"] >= 3


def test_changes_of_others_are_left(namespace: Namespace) -> None:
    assert namespace.nic("apply", "-i", "v0").returncode == 0
    namespace.must("sh", "-c", "echo 5000 > /proc/sys/net/core/somaxconn")
    again = namespace.json("apply", "-i", "v0")
    assert again["foreign"] == {"sysctl - net.core.somaxconn": "5000"}
    undone = namespace.nic("undo", "-i", "v0")
    assert "left alone: net.core.somaxconn is 5000" in undone.stdout
    assert namespace.must("cat", "/proc/sys/net/core/somaxconn") == "5000\n"


def test_show_saves_facts_that_plan_replays(namespace: Namespace, tmp_path: Path) -> None:
    saved = tmp_path / "facts.json"
    shown = namespace.json("show", "-i", "v0", "--save", str(saved))
    assert shown["nics"][0]["driver"] == "veth"  # type: ignore[index]
    assert 0 < shown["load"]["busy"] <= 1  # type: ignore[index]
    assert not shown["owns"]["host_namespace"]  # type: ignore[index]
    replayed = subprocess.run(
        [sys.executable, "-c", CLI, "nic", "plan", "--facts", str(saved), "--json"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1] / "src")},
    )
    assert json.loads(replayed.stdout) == namespace.json("plan", "-i", "v0")


def test_what_a_bridge_stands_on_is_planned(namespace: Namespace) -> None:
    namespace.must("ip", "link", "add", "br0", "type", "bridge")
    namespace.must("ip", "link", "set", "v0", "master", "br0")
    changes = namespace.json("plan", "-i", "br0")["changes"]
    names = {line["setting"]["interface"] for line in changes}  # type: ignore[attr-defined]
    assert names <= {"v0", ""} and "" in names


def test_read_only_sysfs_is_said(namespace: Namespace) -> None:
    # `ip netns exec` mounts a /sys of its own, in a mount namespace of its own.
    prefix = ("sh", "-c", 'mount -o remount,ro /sys && exec "$@"', "sh")
    done = namespace.nic("plan", "-i", "v0", prefix=prefix)
    assert "queues of v0 are not ours to set: /sys is read-only" in done.stdout
    applied = namespace.nic("apply", "-i", "v0", prefix=prefix)
    assert applied.returncode == 0, applied.stderr
    assert namespace.nic("undo", "-i", "v0").returncode == 0


def test_a_container_with_users_of_its_own(tmp_path: Path) -> None:
    counts = "numtxqueues 2 numrxqueues 4"
    script = (
        f"ip link add v0 {counts} type veth peer name v1 {counts} && ip link set v0 up &&"
        " mount -t sysfs none /sys && "
        f"'{sys.executable}' -c '{CLI}' nic apply -i v0 --state '{tmp_path}' && "
        "cat /proc/sys/net/core/somaxconn"
    )
    done = subprocess.run(
        ["unshare", "-Urnm", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1] / "src")},
    )
    assert done.returncode == 0 and done.stdout.endswith("\n16384\n"), done.stderr
    assert "or the container has users of its own" in done.stdout


def test_read_only_sysctls_are_said(namespace: Namespace) -> None:
    script = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
    done = namespace.nic("plan", "-i", "v0", prefix=("sh", "-c", script, "sh"))
    assert "net.core.somaxconn is not ours: /proc/sys is read-only" in done.stdout


@pytest.mark.parametrize(
    ("words", "prepare", "code", "message"),
    [
        (("show", "-i", "nope"), (), 2, "there is no interface nope; choose one of lo, v1, v0"),
        (("undo", "-i", "nope"), (), 2, "there is no interface nope"),
        (("show", "-i", "v0", "--save", "/no/file"), (), 2, "/no/file cannot be written"),
        (("apply", "-i", "v0"), ("ip", "link", "set", "v0", "down"), 4, "v0 is down"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], prepare: tuple[str, ...], code: int, message: str, namespace: Namespace
) -> None:
    if prepare:
        namespace.must(*prepare)
    before = namespace.state_now()
    done = namespace.nic(*words)
    assert done.returncode == code and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert namespace.state_now() == before


def test_without_rights_nothing_is_changed(namespace: Namespace) -> None:
    before = namespace.state_now()
    code = (
        # Imported first: the user nobody may not see the folder of the interpreter.
        "import os, pyroute2, fastsocket.cli.nic, fastsocket.nic.apply, fastsocket.nic.collect\n"
        "from fastsocket.cli.main import main\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); main()"
    )
    done = namespace.run(sys.executable, "-c", code, "nic", "apply", "-i", "v0")
    assert done.returncode == 3 and "that needs root" in done.stderr
    assert namespace.state_now() == before


def test_sysfs_of_another_namespace_is_noticed(namespace: Namespace) -> None:
    words = ("nic", "show", "-i", "v0")
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{namespace.name}", sys.executable, "-c", CLI, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1] / "src")},
    )
    assert done.returncode == 4
    assert "/sys does not show the interface v0" in done.stderr
