# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs made here, of every kind that the preloaded library can or cannot reach."""

import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastsocket.host.elf import CommandNotFoundError, NotExecutableError, Reach, classify, resolve

pytestmark = pytest.mark.unit

SOURCE = "int main(void) { return 0; }\n"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("elf")
    source = folder / "main.c"
    source.write_text(SOURCE)

    def make(name: str, compiler: str, *flags: str) -> Path:
        if shutil.which(compiler) is None:
            pytest.skip(f"no {compiler}")
        path = folder / name
        subprocess.run([compiler, *flags, "-o", path, source], check=True, timeout=60)
        return path

    return make


def script(path: Path, line: str) -> Path:
    path.write_text(f"#!{line}\n")
    path.chmod(0o755)
    return path


def test_dynamic(build) -> None:
    found = classify(build("dynamic", "gcc"))
    assert found.reach is Reach.DYNAMIC
    assert found.preloadable
    assert found.why == ""


@pytest.mark.parametrize("flag", ["-static", "-static-pie"])
def test_static(build, flag: str) -> None:
    found = classify(build(f"static{flag}", "gcc", flag))
    assert found.reach is Reach.STATIC
    assert not found.preloadable
    assert "statically linked" in found.why


def test_musl(build) -> None:
    assert classify(build("musl", "musl-gcc")).reach is Reach.MUSL


def test_musl_static(build) -> None:
    assert classify(build("musl-static", "musl-gcc", "-static")).reach is Reach.STATIC


def test_another_loader(build) -> None:
    path = build("other", "gcc", "-Wl,--dynamic-linker=/system/bin/linker64")
    found = classify(path)
    assert found.reach is Reach.OTHER_LIBC
    assert "/system/bin/linker64" in found.why


def test_glibcs_loader_run_as_a_program(build) -> None:
    text = subprocess.run(
        ["ldd", sys.executable], capture_output=True, text=True, check=True
    ).stdout
    loader = next(word for word in text.split() if "/ld-linux" in word)
    assert classify(Path(loader)).reach is Reach.DYNAMIC


def test_another_architecture(build, tmp_path: Path) -> None:
    data = bytearray(build("dynamic", "gcc").read_bytes())
    data[18:20] = struct.pack("=H", 0xF7)  # EM_BPF runs nowhere
    path = tmp_path / "foreign"
    path.write_bytes(data)
    assert classify(path).reach is Reach.FOREIGN


def test_32_bit(build, tmp_path: Path) -> None:
    data = bytearray(build("dynamic", "gcc").read_bytes())
    data[4] ^= 3  # the other class
    path = tmp_path / "narrow"
    path.write_bytes(data)
    assert classify(path).reach is Reach.FOREIGN


@pytest.mark.parametrize("length", [5, 20, 63, 64, 100])
def test_cut_short(build, tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut"
    path.write_bytes(build("dynamic", "gcc").read_bytes()[:length])
    assert classify(path).reach in (Reach.UNKNOWN, Reach.FOREIGN)


@pytest.mark.parametrize("data", [b"", b"MZ\x90", b"echo hello\n"])
def test_neither_elf_nor_script(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "text"
    path.write_bytes(data)
    assert classify(path).reach is Reach.UNKNOWN


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
@pytest.mark.parametrize(
    ("mode", "uid", "reach"),
    [
        (0o4755, 1000, Reach.PRIVILEGED),
        (0o4755, 0, Reach.DYNAMIC),  # set-user-ID to the caller itself changes nothing
        (0o2755, 1000, Reach.PRIVILEGED),
        (0o2745, 1000, Reach.DYNAMIC),  # not executable for the group: mandatory locking
    ],
)
def test_set_id(build, mode: int, uid: int, reach: Reach) -> None:
    path = build(f"setid-{mode:o}-{uid}", "gcc")
    os.chown(path, 0, 0)
    path.chmod(mode)
    assert classify(path, uid=uid, gid=uid).reach is reach


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to set capabilities")
def test_file_capabilities(build) -> None:
    path = build("capable", "gcc")
    # struct vfs_cap_data, revision 2, effective: CAP_NET_BIND_SERVICE
    value = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
    try:
        os.setxattr(path, "security.capability", value)
    except OSError as error:
        pytest.skip(f"file system without capabilities: {error.strerror}")
    assert classify(path, uid=1000, gid=1000).reach is Reach.PRIVILEGED
    assert classify(path, uid=0, gid=0).reach is Reach.DYNAMIC


def test_classified_as_the_loader_behaves(build, tmp_path: Path) -> None:
    """The claim itself: LD_PRELOAD of a library that exits with 7 reaches what is preloadable."""
    source = tmp_path / "seven.c"
    source.write_text(
        "#include <unistd.h>\n__attribute__((constructor)) static void f(void) { _exit(7); }\n"
    )
    library = tmp_path / "seven.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    for path in (build("dynamic", "gcc"), build("static-static", "gcc", "-static")):
        run = subprocess.run([path], env={"LD_PRELOAD": str(library)}, timeout=10, check=False)
        assert (run.returncode == 7) is classify(path).preloadable


def test_script_chain(tmp_path: Path) -> None:
    first = script(tmp_path / "first", "/bin/sh -e")
    second = script(tmp_path / "second", str(first))
    found = classify(second)
    assert found.scripts == (second, first)
    assert found.image == Path("/bin/sh")
    assert found.path == second


@pytest.mark.parametrize("words", ["sh", "-S sh -e", "-S -i A=1 sh"])
def test_env_is_looked_through(tmp_path: Path, words: str) -> None:
    path = script(tmp_path / "script", f"/usr/bin/env {words}")
    assert classify(path).image.name == "sh"


def test_script_of_a_static_interpreter(build, tmp_path: Path) -> None:
    interpreter = build("static-static", "gcc", "-static")
    found = classify(script(tmp_path / "script", str(interpreter)))
    assert found.reach is Reach.STATIC
    assert str(interpreter) in found.why


def test_script_without_its_interpreter(tmp_path: Path) -> None:
    with pytest.raises(CommandNotFoundError, match="bad interpreter; /nowhere/sh does not exist"):
        classify(script(tmp_path / "script", "/nowhere/sh"))


def test_script_with_an_empty_line(tmp_path: Path) -> None:
    with pytest.raises(NotExecutableError, match="empty"):
        classify(script(tmp_path / "script", " "))


def test_script_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "script"
    with pytest.raises(NotExecutableError, match="too many levels"):
        classify(script(path, str(path)))


def test_resolve_through_path(tmp_path: Path) -> None:
    hidden, shown = tmp_path / "hidden", tmp_path / "shown"
    for folder in (hidden, shown):
        folder.mkdir()
        (folder / "tool").write_text("")
    (shown / "tool").chmod(0o755)
    # As in a shell, a file that cannot be executed does not hide one that can.
    assert resolve("tool", f"{hidden}:{shown}") == shown / "tool"


def test_resolve_with_a_slash(tmp_path: Path) -> None:
    path = tmp_path / "tool"
    path.write_text("")
    path.chmod(0o755)
    assert resolve(str(path), "") == path


@pytest.mark.parametrize("command", ["no-such-command", "./no/such/file", ""])
def test_not_found_is_127(command: str, tmp_path: Path) -> None:
    with pytest.raises(CommandNotFoundError) as info:
        resolve(command, str(tmp_path))
    assert info.value.exit_code == 127


def test_not_executable_is_126(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("")
    (tmp_path / "folder").mkdir()
    for command in ("tool", "folder", str(tmp_path / "tool"), str(tmp_path)):
        with pytest.raises(NotExecutableError) as info:
            resolve(command, str(tmp_path))
        assert info.value.exit_code == 126


def test_quick() -> None:
    path = resolve("sh")
    classify(path)
    best = min(_seconds(path) for _ in range(5))
    assert best < 0.005


def _seconds(path: Path) -> float:
    start = time.thread_time()  # what others take of the CPU meanwhile does not count
    classify(path)
    return time.thread_time() - start
