# SPDX-License-Identifier: GPL-2.0-or-later
"""The log: whole lines from many writers, bounded, and safe in /tmp."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from fastsocket.errors import ConflictError
from fastsocket.host import journal
from fastsocket.host.runtime import HOST_DIR, private_dir, runtime_dir, write_atomically

pytestmark = pytest.mark.unit


def test_lines_carry_time_and_text(tmp_path: Path) -> None:
    before = time.time()
    assert journal.append("Load", tmp_path / "run")
    (entry,) = journal.entries(tmp_path / "run")
    assert entry.text == "Fastsocket: Load"
    assert entry.time is not None
    assert before - 0.001 <= entry.time <= time.time()


def test_an_event_is_one_line(tmp_path: Path) -> None:
    journal.append("a\nb\x1b[31m\0c\r", tmp_path)
    (entry,) = journal.entries(tmp_path)
    assert entry.text == "Fastsocket: a b [31m c "


def test_a_long_event_is_cut(tmp_path: Path) -> None:
    journal.append("x" * 5000, tmp_path)
    journal.append("next", tmp_path)
    assert (tmp_path / "log").stat().st_size < journal.LINE_LIMIT + 100
    assert journal.entries(tmp_path)[1].text == "Fastsocket: next"


def test_empty_and_foreign_lines(tmp_path: Path) -> None:
    assert journal.entries(tmp_path) == []
    (tmp_path / "log").write_bytes(b"no time\n\xff\n")
    assert [entry.time for entry in journal.entries(tmp_path)] == [None, None]


def test_bounded(tmp_path: Path) -> None:
    count = 3 * journal.LIMIT // journal.LINE_LIMIT
    for number in range(count):
        journal.append(f"{number} " + "x" * journal.LINE_LIMIT, tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= journal.LIMIT
    last = journal.entries(tmp_path)[-1].text
    assert last.startswith(f"Fastsocket: {count - 1} ")


def _write(folder: Path, writer: int) -> None:
    for number in range(200):
        journal.append(f"{writer} {number} " + "y" * 300, folder)


def test_many_writers_tear_no_line(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, writer)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(30)
    entries = journal.entries(tmp_path)
    assert all(entry.time and entry.text.endswith("y" * 300) for entry in entries)
    assert len(entries) == 4 * 200


def test_clear(tmp_path: Path) -> None:
    journal.append("x", tmp_path)
    assert journal.clear(tmp_path) == [tmp_path / "log"]
    assert list(tmp_path.iterdir()) == []
    assert journal.clear(tmp_path) == []


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not journal.append("x", tmp_path / "file")
    (tmp_path / "log").symlink_to(tmp_path / "victim")
    assert not journal.append("x", tmp_path)
    assert not (tmp_path / "victim").exists()


def test_runtime_dir_of_each_user(tmp_path: Path) -> None:
    assert runtime_dir(0) == HOST_DIR
    assert runtime_dir(7, {"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "fastsocket"
    for environ in ({}, {"XDG_RUNTIME_DIR": "relative"}, {"XDG_RUNTIME_DIR": "/no/such/folder"}):
        assert runtime_dir(7, environ).name == "fastsocket-7"


def test_private_dir_is_made_for_this_user_alone(tmp_path: Path) -> None:
    path = private_dir(tmp_path / "new")
    assert path.stat().st_mode & 0o022 == 0
    assert private_dir(path) == path


def test_private_dir_refuses_what_others_can_write(tmp_path: Path) -> None:
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(0o777)
    with pytest.raises(ConflictError, match="only this user can write"):
        private_dir(path)


def test_private_dir_refuses_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(ConflictError):
        private_dir(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder away")
def test_private_dir_refuses_another_owner(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)
    with pytest.raises(ConflictError):
        private_dir(path)


def test_write_atomically_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomically_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    path.mkdir()  # what rename(2) cannot replace
    with pytest.raises(OSError, match="directory"):
        write_atomically(path, "new")
    assert list(tmp_path.iterdir()) == [path]
