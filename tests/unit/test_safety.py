# SPDX-License-Identifier: GPL-2.0-or-later
"""What root must not load. The cases that need files of other owners need root themselves."""

import os
from pathlib import Path

import pytest

from fastsocket.errors import ConflictError
from fastsocket.host.safety import require_trusted

pytestmark = pytest.mark.unit

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
OTHER = 12345


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "lib"
    folder.mkdir(mode=0o755)
    path = folder / "libfsocket.so"
    path.write_text("")
    path.chmod(0o644)
    return path


def test_other_users_load_what_they_like(library: Path) -> None:
    library.chmod(0o666)
    require_trusted(library, uid=1000)


@needs_root
def test_root_only_is_trusted(library: Path) -> None:
    require_trusted(library, uid=0)


@needs_root
@pytest.mark.parametrize("mode", [0o666, 0o646])
def test_world_writable_file(library: Path, mode: int) -> None:
    library.chmod(mode)
    with pytest.raises(ConflictError, match=f"{library} can be written by everybody") as info:
        require_trusted(library, uid=0)
    assert "chmod go-w" in str(info.value)
    assert info.value.exit_code == 4


@needs_root
def test_world_writable_folder_above(library: Path) -> None:
    library.parent.chmod(0o777)
    with pytest.raises(ConflictError, match=f"{library.parent} can be written"):
        require_trusted(library, uid=0)


@needs_root
def test_sticky_folder_protects_what_is_roots(library: Path) -> None:
    library.parent.chmod(0o1777)
    require_trusted(library, uid=0)


@needs_root
def test_sticky_folder_does_not_protect_what_is_not(library: Path) -> None:
    library.parent.chmod(0o1777)
    os.chown(library, OTHER, 0)
    with pytest.raises(ConflictError, match=f"user {OTHER}, who owns it|everybody"):
        require_trusted(library, uid=0)


@needs_root
def test_other_owner_of_the_folder(library: Path) -> None:
    os.chown(library.parent, OTHER, 0)
    with pytest.raises(ConflictError, match=f"{library.parent} can be written by user {OTHER}"):
        require_trusted(library, uid=0)


@needs_root
def test_group_with_unknown_members(library: Path) -> None:
    os.chown(library, 0, OTHER)
    library.chmod(0o664)
    with pytest.raises(ConflictError, match=f"group {OTHER}"):
        require_trusted(library, uid=0)


@needs_root
def test_roots_own_group(library: Path) -> None:
    library.chmod(0o664)
    require_trusted(library, uid=0)


@needs_root
def test_link_through_an_untrusted_folder(library: Path, tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    (open_folder / "link.so").symlink_to(library)
    good = tmp_path / "entry.so"
    good.symlink_to("open/../open/link.so")
    with pytest.raises(ConflictError, match=f"{open_folder} can be written"):
        require_trusted(good, uid=0)


@needs_root
def test_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        require_trusted(tmp_path / "a", uid=0)


@needs_root
def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        require_trusted(tmp_path / "none.so", uid=0)
