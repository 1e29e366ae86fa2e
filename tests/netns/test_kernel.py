# SPDX-License-Identifier: GPL-2.0-or-later
"""The probes of kernel features: true answers here, honest ones where they cannot be had."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastsocket.errors import UsageError
from fastsocket.host import kernel, probe_mainline, probe_socket
from fastsocket.host.feature import Feature, State
from fastsocket.host.kmem import KernelMemory

pytestmark = pytest.mark.netns

# What every kernel has that Fastsocket supports (5.15 and later, with BTF).
CERTAIN = {
    "xdp",
    "cpumap",
    "lockless-listener",
    "napi-skb-cache",
    "page-pool",
    "reuseport-cbpf",
    "reuseport-cbpf-unprivileged",
    "reuseport-ebpf",
    "vfs-fast-path",
    "raw-tracepoint",
}
SHOW = (
    "import json; from fastsocket.host.kernel import verify; "
    "print(json.dumps([[f.name, f.state, f.why, f.todo] for f in verify()]))"
)


def descriptors() -> list[str]:
    """Return what this process has open, by kind; the folder being listed is one of them."""
    entries = Path("/proc/self/fd").iterdir()
    return sorted(str(entry.readlink()).split(":")[0] for entry in entries if entry.is_symlink())


def elsewhere(*prefix: str) -> dict[str, Feature]:
    """Run all probes in a process started through other commands."""
    text = subprocess.run(
        [*prefix, sys.executable, "-c", SHOW], capture_output=True, check=True, timeout=60
    ).stdout
    return {row[0]: Feature(row[0], State(row[1]), row[2], row[3]) for row in json.loads(text)}


def test_certain_features_are_seen() -> None:
    features = kernel.verify(CERTAIN)
    # Without userfaultfd the listener's lock cannot be held, and that must be said.
    unseen = [
        feature
        for feature in features
        if feature.state is not State.ACTIVE and "no userfaultfd" not in feature.why
    ]
    assert not unseen


@pytest.mark.parametrize("name", sorted(CERTAIN))
def test_each_probe_stands_alone(name: str) -> None:
    script = f"from fastsocket.host.kernel import verify; print(verify([{name!r}])[0])"
    alone = [sys.executable, "-c", script]
    text = subprocess.run(alone, capture_output=True, check=True, timeout=30, text=True).stdout
    assert "'active'" in text or "no userfaultfd" in text


def test_every_probe_answers_with_its_name_and_a_reason() -> None:
    features = kernel.verify()
    assert [feature.name for feature in features] == list(kernel.PROBES)
    assert all(feature.why for feature in features)


def test_probes_leave_nothing() -> None:
    kernel.verify()
    fds = descriptors()
    kernel.verify()
    assert descriptors() == fds
    # The kernel frees a program a moment after its last descriptor is closed.
    deadline = time.monotonic() + 10
    while _bpf_objects() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _bpf_objects()


def _bpf_objects() -> set[int]:
    """Return the ids of the programs of this project's probes."""
    shown = subprocess.run(["bpftool", "-j", "prog"], capture_output=True, check=True, timeout=30)
    own = [p for p in json.loads(shown.stdout) if p.get("name") == "fastsocket"]
    return {program["id"] for program in own}


def test_no_loopback_is_unknown_not_missing() -> None:
    features = elsewhere("unshare", "--net")
    for name in ("reuseport-cbpf", "reuseport-cbpf-unprivileged", "reuseport-ebpf", "sockmap"):
        assert features[name].state is State.UNKNOWN
        assert features[name].why == "loopback is down"


def test_without_capabilities() -> None:
    features = elsewhere("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    for name in ("xdp", "reuseport-ebpf", "vfs-fast-path", "raw-tracepoint"):
        assert features[name].state is State.UNKNOWN
        assert "not allowed" in features[name].why
    assert features["reuseport-cbpf"].state is State.ACTIVE


def test_a_sysctl_that_is_off_is_missing_with_its_remedy() -> None:
    script = 'echo 0 > /proc/sys/net/ipv4/tcp_early_demux && exec "$@"'
    features = elsewhere("unshare", "--net", "sh", "-c", script, "sh")
    assert features["early-demux"].state is State.MISSING
    assert features["early-demux"].todo == "sysctl -w net.ipv4.tcp_early_demux=1"


def test_sockets_that_are_linked_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe can fail: with a file in the socket's place it says so."""

    monkeypatch.setattr(probe_mainline.socket, "socket", Path("/etc/passwd").open)
    feature = probe_mainline.vfs_fast_path()
    assert feature.state is State.MISSING
    assert "the inode list and the dentry cache" in feature.why


def test_a_lock_that_is_not_held_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ask for an option that the kernel copies out without the socket's lock.
    monkeypatch.setattr(probe_mainline, "_SO_GET_FILTER", probe_mainline.socket.SO_TYPE)
    feature = probe_mainline.lockless_listener()
    assert feature.state is State.UNKNOWN


def test_a_choice_that_is_ignored_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_socket, "_attach_cbpf", lambda sock, index: None)
    monkeypatch.setattr(probe_socket, "_WAIT", 0.1)
    # By chance the hash sends all eight connections where the program would: 1 in 256.
    states = {probe_socket.reuseport_cbpf().state for _ in range(3)}
    assert State.MISSING in states


def test_a_probe_that_is_killed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a signal is not that of an error: 11 would be EAGAIN."""

    def crash() -> bool:
        os.kill(os.getpid(), signal.SIGKILL)
        return True

    monkeypatch.setattr(probe_socket, "_cbpf_chooses", crash)
    (feature,) = kernel.verify(["reuseport-cbpf-unprivileged"])
    assert feature.state is State.UNKNOWN
    assert feature.why.endswith("the process that tried was ended by SIGKILL")


def test_a_refusal_is_missing_and_a_changed_structure_unknown() -> None:
    def refused() -> Feature:
        raise OSError(22, "Invalid argument")

    def renamed() -> Feature:
        raise KeyError("struct sock has no sk_rx_dst")

    assert kernel._probe("x", refused).state is State.MISSING
    assert kernel._probe("x", renamed) == Feature(
        "x", State.UNKNOWN, "not readable on this kernel: struct sock has no sk_rx_dst"
    )


def test_unknown_feature() -> None:
    with pytest.raises(UsageError, match="unknown feature 'warp'; known are xdp"):
        kernel.verify(["warp"])


def test_kernel_memory_reads_this_process() -> None:
    with KernelMemory() as memory, Path("/etc/passwd").open() as file:
        inode = memory.member(memory.file(file.fileno()), "file", "f_inode")
        number = memory.member(inode, "inode", "i_ino")
        assert number == os.fstat(file.fileno()).st_ino
        assert memory.word(0) == 0
