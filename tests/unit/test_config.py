# SPDX-License-Identifier: GPL-2.0-or-later
"""Parameters from files and profiles, and what is said about wrong ones."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsocket import config
from fastsocket.config import ALLOWED, Parameters, checked, load_config
from fastsocket.errors import UsageError
from fastsocket.profile import load_profile, profile_names

pytestmark = pytest.mark.unit

GOOD = {
    "enable_listen_spawn": (0, 1, 2),
    "enable_receive_flow_deliver": (0, 1),
    "enable_fast_epoll": (0, 1),
    "policy": ("local", "spread", "hash"),
    "stall_us": (100, 10_000_000),
    "slack": (0, 1000),
    "lean": ("auto", "off"),
    "defer_accept": (0, 1),
    "fast_open": (0, 1),
    "batch": (0, 1),
    "busy_poll_us": (0, 1000),
    "slots": (0, 256),
}
WRONG = {
    "enable_listen_spawn": (3, -1, True, "2", 1.0),
    "enable_receive_flow_deliver": (2, True),
    "enable_fast_epoll": (2, False),
    "policy": ("Local", 0, ""),
    "stall_us": (99, 10_000_001, "100", 100.5),
    "slack": (-1, 1001),
    "lean": ("on", True),
    "defer_accept": (2, True),
    "fast_open": (2, False),
    "batch": (2, True),
    "busy_poll_us": (-1, 1001, True, "20"),
    "slots": (-1, 257, [1]),
}


def test_every_parameter_is_documented_and_tested() -> None:
    assert set(ALLOWED) == set(GOOD) == set(WRONG) == {field.name for field in fields(Parameters)}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in GOOD.items() for v in vs])
def test_allowed(key: str, value: object) -> None:
    assert getattr(checked({key: value}, "test"), key) == value


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_not_allowed(key: str, value: object) -> None:
    with pytest.raises(UsageError) as info:
        checked({key: value}, "/etc/x.toml")
    text = str(info.value)
    assert text.startswith(f"/etc/x.toml: {key} = ")
    assert text.endswith(f"allowed: {ALLOWED[key]}")
    assert info.value.exit_code == 2


WORDS = st.sampled_from(["local", "spread", "hash", "auto", "off", "", "1"])


@given(st.dictionaries(st.sampled_from(sorted(ALLOWED)), st.integers() | WORDS))
def test_whatever_is_accepted_survives_json(values: dict[str, object]) -> None:
    try:
        found = checked(values, "test")
    except UsageError:
        return
    assert msgspec.json.decode(msgspec.json.encode(found), type=Parameters) == found


def test_base_is_kept_where_nothing_is_said() -> None:
    base = Parameters(slack=7, policy="hash")
    assert checked({"slack": 9}, "test", base) == Parameters(slack=9, policy="hash")


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "fastsocket.toml"
    file.write_text('enable_listen_spawn = 1\npolicy = "spread"  # why not\n')
    assert load_config(file) == Parameters(enable_listen_spawn=1, policy="spread")


def test_file_in_the_current_folder_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fastsocket.toml").write_text("enable_listen_spawn = 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "SYSTEM_CONFIG", tmp_path / "none.toml")
    assert load_config() == Parameters()


def test_system_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "etc.toml"
    file.write_text("slots = 3\n")
    monkeypatch.setattr(config, "SYSTEM_CONFIG", file)
    assert load_config().slots == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"enable_listen_spawn = ", "is not TOML; Invalid value"),
        (b"\xff\xfe", "is not TOML"),
        (b"enable_listen_spawm = 1", "unknown parameter 'enable_listen_spawm'; known are enable_"),
        (b"[server]\nslots = 1", "unknown parameter 'server'"),
    ],
)
def test_wrong_file(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as info:
        load_config(file)
    assert str(file) in str(info.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read; No such file"):
        load_config(tmp_path / "none.toml")


def test_profiles_are_complete() -> None:
    names = "gunicorn granian haproxy lighttpd memcached nginx node postgresql redis uvicorn"
    assert set(profile_names()) == set(names.split())


@pytest.mark.parametrize("name", profile_names())
def test_profile(name: str) -> None:
    profile = load_profile(name)
    assert profile.parameters.keys() == profile.reasons.keys()
    assert all(profile.reasons.values())
    assert all(advice.setting and advice.why for advice in profile.advice)
    checked(profile.parameters, name)


def test_a_profile_adds_its_settings_before_the_applications_own() -> None:
    profile = load_profile("haproxy")
    command = ["/usr/sbin/haproxy", "-db", "-f", "own.cfg"]
    option, file, *rest = profile.command(command)[1:]
    assert (option, rest) == ("-f", command[1:])
    assert "tune.listener.multi-queue off" in Path(file).read_text()
    assert profile.command(["sh", "-c", "haproxy -db"]) == ["sh", "-c", "haproxy -db"]
    assert load_profile("nginx").command(["nginx"]) == ["nginx"]


@pytest.mark.parametrize("name", ["ngnix", "", "../profiles/nginx", "/etc/passwd"])
def test_unknown_profile_lists_the_known(name: str) -> None:
    with pytest.raises(UsageError, match="known are granian, gunicorn, haproxy") as info:
        load_profile(name)
    assert info.value.exit_code == 2


def test_example_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "config.md").read_text()
    block = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    assert set(tomllib.loads(block[1])) == set(ALLOWED)
    assert checked(tomllib.loads(block[1]), "docs/config.md") == Parameters()
