# SPDX-License-Identifier: GPL-2.0-or-later
"""A command under `fastsocket run` behaves as without: process, exit code, signals, addresses."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fastsocket.native import native_file

pytestmark = pytest.mark.apps

FASTSOCKET = [sys.executable, "-m", "fastsocket"]
RUN = [*FASTSOCKET, "run", "--"]
NOBODY = 65534
# A launch that takes longer adds more than the promised time even on a slow machine.
PATIENCE = 20

# Serves "hello" to everybody on the port of its argument; tells when it listens.
SERVER = """
import socket, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(64)
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"hello")
"""
# The same in C, for the programs that the preload cannot reach: serves once, tells its user.
PROGRAM = r"""
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void)
{
	struct sockaddr_in at;
	socklen_t size = sizeof(at);
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	int client = socket(AF_INET, SOCK_STREAM, 0);
	int served;

	memset(&at, 0, sizeof(at));
	at.sin_family = AF_INET;
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(listener, (struct sockaddr *)&at, size) || listen(listener, 8) ||
		getsockname(listener, (struct sockaddr *)&at, &size) ||
		connect(client, (struct sockaddr *)&at, size))
		return 1;
	served = accept(listener, NULL, NULL);
	printf("served %d as %d\n", served >= 0, (int)geteuid());
	return served < 0;
}
"""


def run(
    command: Sequence[str | Path], *, text: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        input=text,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def serve(prefix: Sequence[str], port: int) -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [*prefix, sys.executable, "-c", SERVER, str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    assert server.stdout.readline() == "listening\n", server.communicate()[1]
    return server


@pytest.fixture(params=["run", "preload"])
def accelerated(request: pytest.FixtureRequest) -> list[str]:
    """The words that go before a command, for both ways of accelerating it."""
    if request.param == "run":
        return RUN
    return ["env", f"LD_PRELOAD={native_file('libfsocket.so')}"]


@pytest.fixture
def server(accelerated: list[str], free_port: int) -> Iterator[subprocess.Popen[str]]:
    started = serve(accelerated, free_port)
    yield started
    started.kill()
    started.communicate()


def one_line(stderr: str) -> str:
    """Return the only line that an error may have."""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    return lines[0]


def test_a_command_that_does_not_exist() -> None:
    done = run([*RUN, "no-such-command-anywhere"])
    assert done.returncode == 127
    assert "no-such-command-anywhere" in one_line(done.stderr)


def test_a_file_that_cannot_be_executed(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("data")
    done = run([*RUN, plain])
    assert done.returncode == 126
    assert str(plain) in one_line(done.stderr)


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["run", "--no-such-flag", "--", "true"],
        ["run", "--profile", "no-such-profile", "--", "true"],
        ["run", "--listen-spawn", "3", "--", "true"],
        ["run", "--lean", "perhaps", "--", "true"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_wrong_usage(words: list[str]) -> None:
    done = run([*FASTSOCKET, *words])
    assert done.returncode == 2
    assert one_line(done.stderr).startswith("fastsocket: ")


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9)])
def test_the_exit_code_is_the_commands_own(script: str, code: int) -> None:
    assert run([*RUN, "sh", "-c", script]).returncode == code


def test_the_process_id_is_the_commands_own() -> None:
    with subprocess.Popen([*RUN, "sh", "-c", "echo $$"], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout
        assert int(it.stdout.read()) == it.pid


def test_standard_streams_and_arguments_pass_unchanged() -> None:
    script = "import sys; sys.stdout.write(sys.stdin.read() + repr(sys.argv[1:]))"
    words = ["--json", "--", "a b", ""]
    done = run([*RUN, sys.executable, "-c", script, *words], text="input ")
    assert done.stdout == "input " + repr(words)


def test_signals_reach_the_command(accelerated: list[str], free_port: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        server = serve(accelerated, free_port)
        with socket.create_connection(("127.0.0.1", free_port), timeout=PATIENCE) as client:
            assert client.recv(16) == b"hello"
        server.send_signal(number)
        server.communicate(timeout=PATIENCE)
        assert server.returncode == -number


def test_a_signal_during_the_first_accept_is_not_lost(
    accelerated: list[str], free_port: int
) -> None:
    """The first accept() claims a slot before it waits; the handler's flag must be seen after."""
    for _ in range(10):
        server = serve(accelerated, free_port)
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=PATIENCE)
        assert server.returncode == -signal.SIGINT


def test_it_serves(server: subprocess.Popen[str], free_port: int) -> None:
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", free_port), timeout=PATIENCE) as client:
            assert client.recv(16) == b"hello"


@pytest.mark.usefixtures("server")
def test_a_second_server_gets_eaddrinuse(accelerated: list[str], free_port: int) -> None:
    for prefix in ([], accelerated, RUN):
        second = run([*prefix, sys.executable, "-c", SERVER, str(free_port)])
        assert second.returncode == 1
        assert "Address already in use" in second.stderr


def test_the_port_is_free_when_the_server_is_gone(accelerated: list[str], free_port: int) -> None:
    for _ in range(3):
        server = serve(accelerated, free_port)
        server.kill()
        server.communicate()
        deadline = time.monotonic() + PATIENCE
        while _listens(free_port):  # the keeper closes its copies once it has seen the exit
            assert time.monotonic() < deadline, "something still listens"
            time.sleep(0.02)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    source = folder / "program.c"
    source.write_text(PROGRAM)
    for name, compiler in {
        "static": ["gcc", "-static"],
        "musl": ["musl-gcc"],
        "setuid": ["gcc"],
    }.items():
        subprocess.run([*compiler, "-o", folder / name, source], check=True)
    return folder


@pytest.mark.parametrize("kind", ["static", "musl"])
def test_programs_that_the_preload_cannot_reach(build: Path, kind: str) -> None:
    done = run([*RUN, build / kind])
    assert (done.returncode, done.stdout) == (0, f"served 1 as {os.geteuid()}\n"), done.stderr
    assert kind in done.stderr, "no note that this program is not reached"


@pytest.mark.parametrize("kind", ["static", "musl"])
def test_unreachable_programs_under_a_reachable_shell(build: Path, kind: str) -> None:
    done = run([*RUN, "sh", "-c", f"{build / kind}; exit $?"])
    assert (done.returncode, done.stdout) == (0, f"served 1 as {os.geteuid()}\n"), done.stderr


def test_setuid_program(build: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a setuid program of another user")
    program = build / "setuid"
    os.chown(program, NOBODY, NOBODY)
    program.chmod(program.stat().st_mode | stat.S_ISUID)
    done = run([*RUN, program])
    assert (done.returncode, done.stdout) == (0, f"served 1 as {NOBODY}\n"), done.stderr
    assert "setuid" in done.stderr, "no note that this program is not reached"


@pytest.mark.parametrize(
    "limit",
    ["ulimit -n 64", "ulimit -l 0", "taskset -p -c 0 $$ >/dev/null"],
)
def test_tight_limits_leave_it_working(limit: str, free_port: int) -> None:
    script = f'{limit} && exec "$@"'
    server = serve(["sh", "-c", script, "sh", *RUN], free_port)
    try:
        with socket.create_connection(("127.0.0.1", free_port), timeout=PATIENCE) as client:
            assert client.recv(16) == b"hello"
    finally:
        server.kill()
        server.communicate()


def test_without_a_bpf_file_system(free_port: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for a mount namespace without /sys/fs/bpf")
    script = 'umount /sys/fs/bpf 2>/dev/null; exec "$@"'
    server = serve(["unshare", "-m", "sh", "-c", script, "sh", *RUN], free_port)
    try:
        with socket.create_connection(("127.0.0.1", free_port), timeout=PATIENCE) as client:
            assert client.recv(16) == b"hello"
    finally:
        server.kill()
        server.communicate()


def test_the_launch_imports_no_parser_and_no_schema_library() -> None:
    """They would take longer than all the rest; how long it takes, `bench overhead` measures."""
    program = (
        "import sys, fastsocket.cli.main, fastsocket.app.launcher, fastsocket.host.params\n"
        "print(*{'click', 'msgspec', 'rich', 'pyroute2', 'tomllib', 'json'} & set(sys.modules))"
    )
    assert run([sys.executable, "-c", program]).stdout.split() in ([], ["json"])


def test_our_own_commands_in_an_accelerated_shell() -> None:
    """They run without the library, which would take their sockets for the application's."""
    command = [*RUN, "sh", "-c", '"$0" -m fastsocket status --json', sys.executable]
    inside = subprocess.run(command, capture_output=True, text=True, check=True)
    outside = subprocess.run(
        [*FASTSOCKET, "status", "--json"], capture_output=True, text=True, check=True
    )
    states = [
        {feature["name"]: feature["state"] for feature in json.loads(done.stdout)["features"]}
        for done in (inside, outside)
    ]
    assert states[0] == states[1]
