# SPDX-License-Identifier: GPL-2.0-or-later
"""``bench scale --vm``: the counts on more cores than this host has, in a virtual machine.

Without hardware virtualisation the virtual CPUs take turns on one real one. So nothing is timed.
One that waits for a lock gives its turn away, and those that come meanwhile wait behind it, as a
convoy that does not end: contentions tell which locks the modes share, and not how often they would
meet there. Where connections are accepted, who is interrupted and how even the work is do not
depend on that.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

import fastsocket
from fastsocket.bench.guest import AT_ONCE, METRICS, Counted, Order, part_file
from fastsocket.bench.interrupt import check, interruptible
from fastsocket.bench.modes import Mode
from fastsocket.bench.result import FORMAT, Host, Point, Result, describe_host
from fastsocket.bench.runner import tabulate
from fastsocket.bench.scenario import Measurement
from fastsocket.errors import ConflictError, FastsocketError, MissingFeatureError, UsageError

__all__ = ["DEFAULT_CPUS", "KIND", "SERVERS", "Machine", "count_in_machine", "machine_counts"]

SERVERS = ("nginx", "haproxy", "haproxy-single-queue", "lighttpd", "demo")
"""Those that can be run there; they answer themselves."""
DEFAULT_CPUS = 24
MOST_CPUS = 64
KIND = "virtual machine, no speed"
BUDGET_SECONDS = 720
CONNECTIONS = 100
"""On each core, in each mode."""
STALL_US = 10_000_000
_NINE_P = "kernel/fs/9p"
# What virtme-ng looks for, to load the modules of the file system in an initial RAM disk.
_BUSYBOXES = ("busybox-static", "busybox.static", "busybox")
_PAUSE = 0.2
# The emulated CPU has few features, so that fewer drivers are loaded; its delay loop needs no
# measuring, which virtual CPUs that take turns get wrong. It does not say that it is a virtual one:
# a kernel that knows takes spin locks of another kind, which report no contention. With
# thread=multi QEMU 7.2 now and then runs code of before the kernel changed it, and the guest dies.
# Debian's kernel takes SELinux where AppArmor is off, and all sockets share its locks: neither.
_QEMU = "-accel tcg,thread=single -cpu qemu64,-hypervisor"
_KERNEL = "lpj=4000000 mitigations=off lsm=capability module_blacklist=powernow_k8"


@dataclass(frozen=True)
class Machine:
    """A virtual machine of `cpus` CPUs and what boots it: kernel image and launcher."""

    cpus: int
    image: Path
    launcher: Path

    @classmethod
    def find(cls, cpus: int) -> "Machine":
        """Look for what is needed.

        Raises:
            UsageError: That many CPUs cannot be had.
            MissingFeatureError: A program or the kernel image is missing.
        """
        if not 2 <= cpus <= MOST_CPUS:
            raise UsageError(f"{cpus} virtual CPUs", f"2 to {MOST_CPUS} can be had")
        launcher = Path(sysconfig.get_path("scripts")) / "vng"
        if not launcher.exists():
            raise MissingFeatureError("virtme-ng is not installed", todo="pip install virtme-ng")
        if shutil.which("qemu-system-x86_64") is None:
            raise MissingFeatureError(
                "qemu-system-x86_64 is not installed", todo="Debian: qemu-system-x86"
            )
        if not any(map(shutil.which, _BUSYBOXES)):
            raise MissingFeatureError("busybox is not installed", todo="Debian: busybox-static")
        for image in sorted(Path("/boot").glob("vmlinuz-*"), reverse=True):
            modules = Path("/lib/modules") / image.name.removeprefix("vmlinuz-")
            if (modules / _NINE_P).is_dir():
                return cls(cpus, image, launcher)
        raise MissingFeatureError(
            "no kernel image with the 9p file system is installed", todo="Debian: linux-image-amd64"
        )

    def boot(self, directory: Path, command: str, log: Path) -> "subprocess.Popen[bytes]":
        """Start the machine; it runs `command`, may write to `directory`, and ends."""
        words = [str(self.launcher), "--disable-kvm", "--force-9p", "--cpus", str(self.cpus)]
        words += ["--memory", "2G", "-r", str(self.image), "--rwdir", str(directory)]
        words += [f"--qemu-opts={_QEMU}", "--append", _KERNEL, "--exec", command]
        # vng starts its parts by name.
        path = os.pathsep.join([str(self.launcher.parent), os.environ["PATH"]])
        with log.open("wb") as output:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": path},
                start_new_session=True,
            )


def machine_counts(cpus: int) -> list[int]:
    """Return the core counts to run on: 2, 4, 8 and so on, and all."""
    return sorted({*(1 << bit for bit in range(1, cpus.bit_length())), cpus})


def count_in_machine(
    cpus: int,
    *,
    server: str,
    modes: Sequence[Mode],
    counts: Sequence[int],
    connections: int | None = None,
    parts: Path | None = None,
    force: bool = False,
    budget_seconds: float = BUDGET_SECONDS,
    tell: Callable[[str], None] = lambda text: None,
) -> Result:
    """Boot a machine and return its counts by cores.

    Args:
        cpus: Virtual CPUs.
        server: What to run on them.
        modes: In which modes.
        counts: On how many of them.
        connections: On each core.
        parts: Where complete core counts are kept; of an earlier call they are not run again.
        force: Run all anew.
        budget_seconds: After which the machine is ended.
        tell: Is told of progress.

    Raises:
        UsageError: More cores than the machine has.
        ConflictError: The parts are of something else.
        MissingFeatureError: The machine cannot be booted here.
        FastsocketError: It failed, or its time was over; complete core counts are kept.
        KeyboardInterrupt: Interrupted; likewise.
    """
    if max(counts) > cpus or min(counts) < 2:
        raise UsageError(f"the machine has {cpus} CPUs", "core counts are 2 to that")
    machine = Machine.find(cpus)
    with tempfile.TemporaryDirectory(prefix="fastsocket-vm-") as temporary:
        directory = parts or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "fastsocket.toml"
        config.write_text(f"stall_us = {STALL_US}\n", encoding="ascii")
        order = Order(
            str(directory.resolve()),
            sorted(set(counts)),
            [str(mode) for mode in modes],
            server,
            connections or CONNECTIONS,
            ["--config", str(config.resolve())],
            describe_host().commit,
        )
        missing = [
            cores for cores in order.counts if force or _part(directory, cores, order) is None
        ]
        if missing:
            wanted = msgspec.structs.replace(order, counts=missing)
            _run(machine, directory, wanted, budget_seconds, tell)
        found = [part for cores in order.counts if (part := _part(directory, cores, order))]
        if len(found) < len(order.counts):
            raise FastsocketError("the virtual machine ended early", _last_words(directory))
    return _result(cpus, order, found)


def _part(directory: Path, cores: int, order: Order) -> Counted | None:
    """Return the counts of an earlier call, None where there are none.

    Raises:
        ConflictError: They are of another commit or another order.
    """
    path = part_file(directory, cores)
    if not path.exists():
        return None
    remedy = "choose another --output, or run all anew with --force"
    try:
        part = msgspec.json.decode(path.read_bytes(), type=Counted)
    except msgspec.DecodeError as error:
        raise ConflictError(f"{path} cannot be read", str(error), remedy) from error
    if msgspec.structs.replace(part.order, counts=order.counts) != order:
        raise ConflictError(f"{path} is of another run", "commit or options differ", remedy)
    return part


def _run(
    machine: Machine,
    directory: Path,
    order: Order,
    budget_seconds: float,
    tell: Callable[[str], None],
) -> None:
    """Boot the machine for what is missing, and end it when its time is over."""
    for cores in order.counts:
        part_file(directory, cores).unlink(missing_ok=True)
    (directory / "error").unlink(missing_ok=True)
    file = directory / "order.json"
    file.write_bytes(msgspec.json.encode(order))
    package = Path(fastsocket.__file__).parents[1]
    words = [f"PYTHONPATH={package}", sys.executable, "-m", "fastsocket.bench.guest"]
    command = shlex.join(["env", *words, str(file.resolve())])
    end = time.monotonic() + budget_seconds
    tell(f"booting {machine.cpus} virtual CPUs; at most {budget_seconds / 60:.0f} minutes for all")
    pending = list(order.counts)
    with interruptible():
        process = machine.boot(directory.resolve(), command, directory / "log")
        try:
            while process.poll() is None:
                check()
                while pending and part_file(directory, pending[0]).exists():
                    tell(f"{pending.pop(0)} cores: done")
                if time.monotonic() > end:
                    raise FastsocketError(
                        f"{len(pending)} core counts were not complete in time",
                        f"{budget_seconds:.0f} s were over",
                        "the same command with --output goes on with those",
                    )
                time.sleep(_PAUSE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last_words(directory: Path) -> str:
    """Return why the guest failed, or the last line of its console."""
    error = directory / "error"
    if error.exists():
        return error.read_text(encoding="utf-8")
    lines = (directory / "log").read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "it said nothing"


def _result(cpus: int, order: Order, parts: Sequence[Counted]) -> Result:
    """Make the result document: its main figures are those of the most cores."""
    points = []
    for part in parts:
        tables = {
            Mode(mode): [Measurement(values=dict(values), reasons={})]
            for mode, values in part.values.items()
        }
        points.append(Point(part.cores, *tabulate(METRICS, tables), {}, part.sites))
    most, here = points[-1], describe_host()
    notes = [
        f"{KIND}: {cpus} virtual CPUs take turns on one of {here.model}; one that waits for a lock "
        "gives its turn away, and others queue behind it: contentions tell which locks the cores "
        "share in each mode, not how often they would meet there",
        f"stall_us is {STALL_US}: a worker whose virtual CPU waits for its turn is not stalled",
        f"each core's clients made {order.connections} connections, {AT_ONCE} at a time: here all "
        "outlive the select program's window, and more would be spread as connections that last",
    ]
    return Result(
        format=FORMAT,
        kind=KIND,
        scenario="scale",
        server=order.server,
        client="fastsocket-load",
        host=Host(parts[-1].kernel, cpus, "virtual CPUs of QEMU", order.commit),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        rounds=1,
        seconds=0,
        connections=order.connections,
        seed=0,
        interrupted=False,
        run_options=[],  # the parameters are in the notes, their file is gone
        notes=[*notes, *dict.fromkeys(note for part in parts for note in part.notes)],
        modes=most.modes,
        ratios=most.ratios,
        call_sites=most.call_sites,
        points=points,
    )
