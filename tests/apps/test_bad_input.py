# SPDX-License-Identifier: GPL-2.0-or-later
"""What is missing or broken means a clear line or a lower tier, and a server that works."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import fastsocket
from fastsocket.native import native_file
from tests.apps.harness import Application, fastsocket_command, http_get

pytestmark = [pytest.mark.apps, pytest.mark.usefixtures("own_network")]

PORT = 8080
CONFIGURATION = """
daemon off; master_process on; worker_processes 2; error_log {place}/error.log; pid {place}/pid;
events {{ worker_connections 256; accept_mutex off; }}
http {{ access_log off;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 "hello\\n"; }} }}
  client_body_temp_path {place}/a; proxy_temp_path {place}/b; fastcgi_temp_path {place}/c;
  uwsgi_temp_path {place}/d; scgi_temp_path {place}/e; }}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> list[str]:
    (tmp_path / "nginx.conf").write_text(CONFIGURATION.format(place=tmp_path, port=PORT))
    return ["nginx", "-e", f"{tmp_path}/error.log", "-c", f"{tmp_path}/nginx.conf"]


def copied_package(place: Path) -> Path:
    """Copy the package, compiled parts included, so that a test may break it."""
    shutil.copytree(Path(fastsocket.__file__).parent, place / "fastsocket")
    place.chmod(0o755)
    return place / "fastsocket/_native"


def test_a_corrupt_bpf_object(nginx: list[str], tmp_path: Path) -> None:
    native = copied_package(tmp_path / "broken")
    whole = native_file("select.bpf.o").read_bytes()
    (native / "select.bpf.o").write_bytes(whole[: len(whole) // 2])
    environment = {"PYTHONPATH": str(tmp_path / "broken")}
    with Application(nginx, PORT, environment=environment) as app:
        app.wait_for_slots(2)
        status = app.status()
        assert status["tier"] == "classic"
        assert "select.bpf.o" in " ".join(status["reasons"].values())
        assert http_get(PORT) == "hello\n"
        assert app.stop() == 0


def test_a_missing_library(nginx: list[str], tmp_path: Path) -> None:
    native = copied_package(tmp_path / "broken")
    (native / "libfsocket.so").unlink()
    done = subprocess.run(
        fastsocket_command("run", "--", *nginx),
        env={**os.environ, "PYTHONPATH": str(tmp_path / "broken")},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "libfsocket.so" in line
    assert "make setup" in line


def test_one_cpu(nginx: list[str]) -> None:
    """A cpuset or an affinity of one CPU: every worker there, connections over all of them."""
    cpu = min(os.sched_getaffinity(0))
    with Application(nginx, PORT, prefix=["taskset", "-c", str(cpu)]) as app:
        slots = app.wait_for_slots(2)
        assert {slot["cpu"] for slot in slots} == {cpu}
        for _ in range(40):
            assert http_get(PORT) == "hello\n"
        assert all(slot["accepted"] for slot in app.slots())
        assert app.stop() == 0


def test_more_workers_than_descriptors_allow(nginx: list[str], tmp_path: Path) -> None:
    """Where no sibling can be opened any more, workers share a socket, and status says so."""
    with Application(nginx, PORT, prefix=["prlimit", "--nofile=12:12"]) as app:
        assert http_get(PORT) == "hello\n"
        assert http_get(PORT) == "hello\n"
        assert app.stop() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--profile", "nosuch"], "known are"),
        (["--listen-spawn", "3"], "listen-spawn"),
        (["--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (["--nosuch"], "nosuch"),
    ],
)
def test_wrong_words(words: list[str], said: str) -> None:
    done = subprocess.run(
        fastsocket_command("run", *words, "--", "true"),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line
