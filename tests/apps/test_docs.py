# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command in the documentation works: each is run, or read by the command's own parser.

Blocks of kind ``sh`` hold commands, blocks of kind ``text`` none, and a block has to say which. A
line that :data:`WAYS` does not cover fails: whoever writes a command down says how it is tested.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import fastsocket
from fastsocket.cli.group import COMMANDS, cli
from fastsocket.native import native_file
from tests.apps.harness import fastsocket_command, namespace, wait_until

pytestmark = pytest.mark.apps

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
KINDS = {"sh", "text", "python", "toml", "ini"}
RULE = "def rule(pkt, cpus):\n    return pkt.hash % cpus\n"


class Way(StrEnum):
    """How a command is tested."""

    RUN = "run for real, on the server and the files of this module"
    READ = "read by the command's own parser: it takes long, or would change this host"
    MAKE = "a target of the Makefile"
    FILE = "a file of the repository"
    HOST = "a program of the host, which is not ours to test"


# The first that matches decides.
WAYS = [
    (r"(bash|cp) \S", Way.FILE),
    (r"make ", Way.MAKE),
    (r".*callgrind", Way.HOST),  # tests/apps/test_demo.py
    (r"(systemctl|echo|mkdir|uname|valgrind) ?", Way.HOST),
    (r"fastsocket (demo|bench|top)$", Way.READ),
    (r"fastsocket (bench|top --replay)", Way.READ),
    (r"fastsocket (attach|detach|unload)( \d+)?$", Way.READ),  # tests/apps/test_attach.py
    (r"fastsocket load(?!.*--dry-run)", Way.READ),
    (r"fastsocket nic (apply|undo)", Way.READ),  # tests/netns/test_nic.py
    (r"fastsocket steer (attach|detach|table)", Way.READ),  # tests/netns/test_steer_device.py
    (r"(fastsocket|LD_PRELOAD=|eval|fastsocket-demo|fastsocket-load) ?", Way.RUN),
]

# What stands for something of the reader's own, or takes longer than it need.
STAND_INS = [
    (r"fastsocket-demo (.*):8080 &", r"fastsocket-demo \1:8082 & sleep 0.3; kill $!"),
    (r"127\.0\.0\.1:8080", "127.0.0.1:{port}"),
    (r"(?<= )4711\b", "{pid}"),
    (r'"\$\(pidof -s nginx\)"', "{pid}"),
    # A server that says its version and ends: that servers serve is tested elsewhere.
    (r"-- (nginx|redis-server)", r"-- \1 -v"),
    (r"(LD_PRELOAD=\S+ \S+) nginx", r"\1 nginx -v"),
    (r"-- haproxy .*", "-- haproxy -v"),
    (r"--seconds 10\b", "--seconds 0.2"),
    (r"(doctor)(?!.*--(seconds|facts))", r"\1 --seconds 0.2"),
    (r"--duration 10s", "--duration 1s"),
    (r"-t 5 -W 1", "-t 0.2 -W 0"),
    (r'eval "\$\((.* zsh)\)"', r"\1 > zsh.txt"),  # bash could not evaluate it
    # A namespace of its own sees its devices in a sysfs of its own.
    (r"^(fastsocket nic)", r"mount -t sysfs none /sys; \1"),
]
# Not of the machine that tests.
MAY_MISS = {"zsh", "haproxy"}


class Line(NamedTuple):
    """A command, and where it stands."""

    page: Path
    number: int
    command: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.number}"


def blocks(page: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the fenced blocks of a page: line number, kind, lines."""
    kind, begin, inside = None, 0, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            inside.append(line)
        elif kind is None:
            kind, begin, inside = line[3:], number, []
        else:
            yield begin, kind, inside
            kind = None


LINES = [
    Line(page, begin + offset, line.strip())
    for page in PAGES
    for begin, kind, lines in blocks(page)
    for offset, line in enumerate(lines, 1)
    if kind == "sh" and line.strip()
]


def way_of(command: str) -> Way | None:
    return next((way for pattern, way in WAYS if re.match(pattern, command)), None)


@dataclass(frozen=True)
class Place:
    """Where commands are run: a folder with what they name, in a namespace with a server."""

    folder: Path
    port: int
    pid: int
    ran: dict[str, "subprocess.CompletedProcess[str]"] = field(default_factory=dict)

    def once(self, command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command, or return what came of it on another page."""
        words = command.partition(" #")[0].rstrip()
        if words not in self.ran:
            self.ran[words] = self.run(command)
        return self.ran[words]

    def run(self, command: str) -> "subprocess.CompletedProcess[str]":
        for pattern, stand_in in STAND_INS:
            command = re.sub(pattern, stand_in.format(port=self.port, pid=self.pid), command)
        environment = {
            **os.environ,
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
            "PYTHONPATH": str(Path(fastsocket.__file__).parents[1]),
            "HOME": str(self.folder),
        }
        return subprocess.run(
            ["unshare", "--mount", "bash", "-euc", command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    folder = tmp_path_factory.mktemp("docs")
    (folder / "bin").mkdir()
    for name in ("fastsocket-demo", "fastsocket-load"):
        (folder / "bin" / name).symlink_to(native_file(name))
    ours = folder / "bin/fastsocket"
    ours.write_text(f'#!/bin/sh\nexec {shlex.join(fastsocket_command())} "$@"\n')
    ours.chmod(0o755)
    for name in ("short", "crash"):
        shutil.copy(ROOT / f"tests/golden/report/{name}.json", folder)
    (folder / "web.py").write_text(RULE)
    (folder / "my.toml").write_text("slack = 10\n")
    (folder / ".config/fish/completions").mkdir(parents=True)
    with namespace():
        subprocess.run(
            ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far"], check=True
        )
        subprocess.run(["ip", "link", "set", "eth0", "up"], check=True)
        command = [
            folder / "bin/fastsocket-demo",
            "-w",
            "2",
            "-c",
            "0",
            "-a",
            "127.0.0.1:8081",
            "--reuseport",
        ]
        with subprocess.Popen([*command, "-o", folder / "demo.log"]) as server:
            made = Place(folder, 8081, server.pid)
            try:
                wait_until(
                    lambda: made.run("fastsocket-load -n 1 127.0.0.1:8080").returncode == 0,
                    "the demo server to answer",
                )
                yield made
            finally:
                server.terminate()


def test_every_command_has_a_page() -> None:
    titles = [page.read_text().splitlines()[0] for page in PAGES]
    for name in COMMANDS:
        assert any(re.search(rf"fastsocket {name}\b", title) for title in titles), name


def test_every_block_says_what_it_holds() -> None:
    for page in PAGES:
        for number, kind, _ in blocks(page):
            assert kind in KINDS, f"{page.name}:{number} is of kind {kind!r}"


@pytest.mark.parametrize("line", LINES, ids=map(str, LINES))
def test_a_command_of_the_documentation(line: Line, request: pytest.FixtureRequest) -> None:
    way = way_of(line.command)
    assert way, f"{line}: say in WAYS how this is tested: {line.command}"
    words = shlex.split(line.command, comments=True)
    if way is Way.MAKE:
        assert f"\n{words[1]}: " in (ROOT / "Makefile").read_text()
    elif way is Way.FILE:
        assert (ROOT / words[1]).is_file()
    elif way is Way.READ:
        parse(words)
    elif way is Way.RUN:
        absent = MAY_MISS.intersection(words) - {word for word in MAY_MISS if shutil.which(word)}
        if absent and words[:2] == ["fastsocket", "run"]:
            pytest.skip(f"{', '.join(absent)} is missing")
        done = request.getfixturevalue("place").once(line.command)
        assert done.returncode == 0, f"{line}: {line.command}\n{done.stdout}{done.stderr}"


def parse(words: list[str]) -> None:
    """Let the command's own parser read the words; nothing is called."""
    command: click.Command = cli
    context = click.Context(cli, info_name="fastsocket")
    rest = words[1:]
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, name
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_context(words[-1], rest, parent=context.parent)


def test_a_command_that_is_not_covered_is_noticed() -> None:
    assert way_of("rm -rf /") is None
    with pytest.raises(click.UsageError):
        parse(["fastsocket", "bench", "short", "--no-such-option"])


def test_python_of_the_documentation_is_what_it_says(place: Place) -> None:
    ran = 0
    for page in PAGES:
        for number, kind, lines in blocks(page):
            source = "\n".join(lines)
            if kind == "python" and "def rule(" in source:
                (place.folder / "rule.py").write_text(source)
                done = place.run("fastsocket steer check rule.py")
                assert done.returncode == 0, f"{page.name}:{number}: {done.stderr}"
                (place.folder / "web.py").write_text(source)
                ran += 1
            elif kind == "python":
                done = subprocess.run(
                    [sys.executable, "-c", source],
                    cwd=place.folder,
                    env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, f"{page.name}:{number}: {done.stderr}"
                ran += 1
    assert ran
