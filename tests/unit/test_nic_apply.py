# SPDX-License-Identifier: GPL-2.0-or-later
"""Apply and undo on a host in memory: all or nothing, exact, and whatever happens in between."""

import errno
from pathlib import Path

import msgspec
import pytest
from nic_fake import FakeHost

from fastsocket.errors import ConflictError, FastsocketError, MissingFeatureError
from fastsocket.nic.apply import Applied, apply
from fastsocket.nic.changes import Plan, Request, Setting
from fastsocket.nic.facts import HostFacts, Netfilter, load_facts
from fastsocket.nic.journal import Journal, Store
from fastsocket.nic.plan import make_plan
from fastsocket.nic.undo import preview, undo

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[1] / "golden/nic"
# A change of channels (tg3 up, isolated down), flow rules (ixgbe), two cards (bond), one queue.
HOSTS = [
    "tg3-8-cores",
    "isolated-and-offline",
    "ixgbe-24-cores-2-nodes",
    "bond-of-2",
    "virtio-1-queue",
    "gve-8-cores",
]
REQUEST = Request("proxy", (80,))


class Killed(BaseException):
    """What a test raises in the place of a signal that nothing can catch."""


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> FakeHost:
    return FakeHost(load_facts(GOLDEN / f"{request.param}.json"))


@pytest.fixture
def tg3() -> FakeHost:
    return FakeHost(load_facts(GOLDEN / "tg3-8-cores.json"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def run(host: FakeHost, store: Store, request: Request = REQUEST, **more: object) -> Applied:
    def make() -> tuple[HostFacts, Plan]:
        facts = host.now()
        return facts, make_plan(facts, request)

    return apply(host, store, host.facts.target, make, **more)  # type: ignore[arg-type]


def test_apply_then_undo_is_exact(host: FakeHost, store: Store) -> None:
    before = dict(host.values)
    done = run(host, store)
    assert done.plan.changes and host.values != before
    for line in done.plan.changes:
        if not (line.setting.kind == "irq" and line.setting not in host.values):
            assert host.read(line.setting) == line.new
    assert make_plan(host.now(), REQUEST).changes == ()
    outcome = undo(host, store, host.facts.target)
    assert outcome is not None and not outcome.foreign
    assert host.values == before
    assert store.load(host.facts.target) is None


def test_second_apply_changes_nothing(host: FakeHost, store: Store) -> None:
    run(host, store)
    after, count = dict(host.values), len(host.writes)
    assert run(host, store).plan.changes == ()
    assert host.values == after and len(host.writes) == count


def test_second_profile_keeps_the_first_values(tg3: FakeHost, store: Store) -> None:
    before = dict(tg3.values)
    run(tg3, store, Request("short"))
    done = run(tg3, store, Request("latency"), force=True)
    assert [line.new for line in done.plan.changes if line.setting.name == "rx-usecs"] == ["10"]
    undo(tg3, store, "eth0")
    assert tg3.values == before


@pytest.mark.parametrize("name", ["tg3-8-cores", "isolated-and-offline", "virtio-1-queue"])
def test_undo_after_a_kill_at_every_step(name: str, tmp_path: Path) -> None:
    facts = load_facts(GOLDEN / f"{name}.json")
    survived = step = 0
    while not survived:
        host, store = FakeHost(facts), Store(tmp_path / str(step))
        before = dict(host.values)
        left = step

        def kill(setting: Setting, value: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        try:
            run(host, store, progress=kill)
            survived = 1
        except Killed:
            assert store.load(facts.target).state == "applying"  # type: ignore[union-attr]
        undo(host, store, facts.target)
        assert host.values == before, f"killed before change {step}"
        step += 1
    assert step > 2


def test_undo_that_is_killed_is_done_again(tmp_path: Path) -> None:
    facts = load_facts(GOLDEN / "isolated-and-offline.json")
    for step in range(0, 40, 3):
        host, store = FakeHost(facts), Store(tmp_path / str(step))
        before = dict(host.values)
        run(host, store)
        left = step

        def kill(setting: Setting, value: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        try:
            undo(host, store, facts.target, progress=kill)
        except Killed:
            undo(host, store, facts.target)
        assert host.values == before, f"killed before change {step}"


def test_apply_after_a_kill_undoes_first(tg3: FakeHost, store: Store) -> None:
    before = dict(tg3.values)

    def kill(setting: Setting, value: str) -> None:
        if setting.kind == "irq":
            raise Killed

    with pytest.raises(Killed):
        run(tg3, store, progress=kill)
    assert run(tg3, store).recovered
    undo(tg3, store, "eth0")
    assert tg3.values == before


@pytest.mark.parametrize(
    "key", ["coalesce eth0 rx-usecs", "xps eth0 3", "sysctl - net.core.somaxconn"]
)
def test_a_refused_value_restores_everything(key: str, tg3: FakeHost, store: Store) -> None:
    before = dict(tg3.values)
    tg3.refuses[key] = errno.EOPNOTSUPP
    with pytest.raises(FastsocketError, match="everything is as before") as caught:
        run(tg3, store)
    assert Setting.parse(key).what in caught.value.what
    assert "Operation not supported" in caught.value.why
    assert f"--skip {key.split(maxsplit=1)[0]}" in caught.value.todo
    assert tg3.values == before and store.load("eth0") is None


def test_a_missing_right_has_its_own_exit_code(tg3: FakeHost, store: Store) -> None:
    before = dict(tg3.values)
    tg3.refuses["irq eth0 rx-2"] = errno.EROFS
    with pytest.raises(MissingFeatureError, match="everything is as before"):
        run(tg3, store)
    assert tg3.values == before


def test_a_rounded_value_restores_everything(tg3: FakeHost, store: Store) -> None:
    before = dict(tg3.values)
    tg3.rounds["coalesce eth0 rx-usecs"] = "332"
    with pytest.raises(FastsocketError, match="333 was set and 332 came of it"):
        run(tg3, store)
    tg3.rounds.clear()
    # The fake rounds the restored value too; a real driver knows the value that it had.
    tg3.values[Setting("coalesce", "eth0", "rx-usecs")] = "20"
    assert tg3.values == before


@pytest.mark.parametrize("works", [0, 2])
def test_a_full_disk_restores_everything(
    works: int, tg3: FakeHost, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is written before the first change and after the last: two syncs each."""
    before, left = dict(tg3.values), iter(range(works, -1, -1))

    def fsync(descriptor: int) -> None:
        if next(left, 1) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(FastsocketError, match=r"eth0.json cannot be written; No space left"):
        run(tg3, store)
    assert tg3.values == before and bool(tg3.writes) == (works > 0)
    assert store.load("eth0") is None


def test_a_full_disk_at_a_second_apply_is_said(
    tg3: FakeHost, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills between the two times that the journal is written, and stays full."""
    before = dict(tg3.values)
    run(tg3, store, Request("short"))
    applied, works = dict(tg3.values), iter([True, True])

    def fsync(descriptor: int) -> None:
        if not next(works, False):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("os.fsync", fsync)
        with pytest.raises(
            FastsocketError,
            match=r"json cannot be written; .*everything is as before, but the journal .*No space",
        ):
            run(tg3, store, Request("long"))
    assert tg3.values == applied
    assert run(tg3, store).recovered
    undo(tg3, store, "eth0")
    assert tg3.values == before


def test_what_cannot_be_restored_is_said_and_kept(tg3: FakeHost, store: Store) -> None:
    before = dict(tg3.values)
    run(tg3, store)
    tg3.refuses["sysctl - net.core.somaxconn"] = errno.EROFS
    with pytest.raises(FastsocketError, match="1 settings of eth0 could not be restored"):
        undo(tg3, store, "eth0")
    tg3.refuses.clear()
    undo(tg3, store, "eth0")
    assert tg3.values == before


def test_a_refused_second_apply_keeps_the_first(tg3: FakeHost, store: Store) -> None:
    run(tg3, store, Request("short"))
    after, journal = dict(tg3.values), store.load("eth0")
    tg3.refuses["rfs eth0 2"] = errno.EINVAL
    with pytest.raises(FastsocketError, match="RFS"):
        run(tg3, store, Request("long"))
    assert tg3.values == after and store.load("eth0") == journal


def test_changes_of_others_are_noticed_and_left(tg3: FakeHost, store: Store) -> None:
    before = dict(tg3.values)
    run(tg3, store)
    irq, sysctl = Setting("irq", "eth0", "rx-1"), Setting("sysctl", "", "net.core.somaxconn")
    tg3.values[irq], tg3.values[sysctl] = "6", "8192"
    again = run(tg3, store)
    assert again.foreign == {str(irq): "6", str(sysctl): "8192"} and not again.plan.changes
    outcome = undo(tg3, store, "eth0")
    assert outcome is not None and outcome.foreign == {str(irq): "6", str(sysctl): "8192"}
    assert tg3.values == {**before, irq: "6", sysctl: "8192"}


def test_force_overrides_others(tg3: FakeHost, store: Store) -> None:
    before = dict(tg3.values)
    run(tg3, store)
    irq = Setting("irq", "eth0", "rx-1")
    tg3.values[irq] = "6"
    assert [line.setting for line in run(tg3, store, force=True).plan.changes] == [irq]
    tg3.values[irq] = "6"
    undo(tg3, store, "eth0", force=True)
    assert tg3.values == before


def test_after_a_reboot_nothing_is_restored(tg3: FakeHost, store: Store) -> None:
    changes = len(run(tg3, store).plan.changes)
    rebooted = FakeHost(tg3.facts)
    rebooted.boot = "boot-2"
    before = dict(rebooted.values)
    outcome = undo(rebooted, store, "eth0")
    assert outcome is not None and len(outcome.gone) == changes and not outcome.restored
    assert rebooted.values == before and not rebooted.writes


def test_apply_after_a_reboot_starts_anew(tg3: FakeHost, store: Store) -> None:
    run(tg3, store)
    rebooted = FakeHost(tg3.facts)
    rebooted.boot = "boot-2"
    before = dict(rebooted.values)
    assert run(rebooted, store).plan.changes
    undo(rebooted, store, "eth0")
    assert rebooted.values == before


def test_after_a_hot_plug_only_the_rest_is_restored(tg3: FakeHost, store: Store) -> None:
    before = dict(tg3.values)
    run(tg3, store)
    fresh = FakeHost(tg3.facts)
    fresh.values.update({one: value for one, value in tg3.values.items() if not one.interface})
    fresh.numbers["eth0"] = 77
    outcome = undo(fresh, store, "eth0")
    assert outcome is not None and {one.kind for one in outcome.restored} == {"sysctl"}
    assert {one.kind for one in outcome.gone} >= {"irq", "xps", "channels"}
    assert fresh.values == before


def test_what_two_cards_share_goes_back_with_the_last(tmp_path: Path) -> None:
    ports, shared = {"eth0": (80,), "eth1": (443,)}, Setting("notrack", "", "ports")
    for order in (("eth0", "eth1"), ("eth1", "eth0")):
        tracked = Netfilter(conntrack=True, can_notrack=True)
        facts = load_facts(GOLDEN / "bond-of-2.json")
        facts = msgspec.structs.replace(facts, netfilter=tracked)
        store = Store(tmp_path / order[0])
        host = FakeHost(facts)
        before = dict(host.values)

        def make(target: str, host: FakeHost = host) -> tuple[HostFacts, Plan]:
            now = host.now()
            facts = msgspec.structs.replace(now, target=target, nics=(now.nic(target),))
            return facts, make_plan(facts, Request("short", ports[target]))

        for name in ("eth0", "eth1"):
            apply(host, store, name, lambda name=name: make(name))  # type: ignore[misc]
        assert host.values[shared] == "80,443"
        first = undo(host, store, order[0])
        assert host.values[Setting("sysctl", "", "net.core.somaxconn")] == "16384"
        last = undo(host, store, order[1])
        assert host.values == before
        assert first is not None and last is not None and first.foreign == last.foreign == {}


def test_a_member_of_a_bond_belongs_to_the_bond(store: Store) -> None:
    facts = load_facts(GOLDEN / "bond-of-2.json")
    host = FakeHost(facts)
    run(host, store)
    alone = msgspec.structs.replace(host.now(), target="eth1", nics=(host.now().nic("eth1"),))
    with pytest.raises(ConflictError, match="stands under the plan of bond0"):
        apply(host, store, "eth1", lambda: (alone, make_plan(alone, REQUEST)))


def test_an_interface_that_is_down_is_refused(tg3: FakeHost, store: Store) -> None:
    nic = msgspec.structs.replace(tg3.facts.nics[0], up=False)
    down = msgspec.structs.replace(tg3.facts, nics=(nic,))
    with pytest.raises(ConflictError, match=r"eth0 is down.*ip link set eth0 up"):
        apply(tg3, store, "eth0", lambda: (down, make_plan(down, REQUEST)))
    assert not tg3.writes


def test_two_at_a_time_are_refused(tg3: FakeHost, store: Store) -> None:
    with store.lock(), pytest.raises(ConflictError, match="another"):
        run(tg3, store)


def test_preview_says_what_undo_does(tg3: FakeHost, store: Store) -> None:
    assert preview(tg3, store, "eth0", force=False) == {}
    run(tg3, store)
    lines = preview(tg3, store, "eth0", force=False)
    count = len(tg3.writes)
    assert lines[Setting("coalesce", "eth0", "rx-usecs")] == "20"
    assert len(tg3.writes) == count


def test_preview_leaves_out_queues_that_come_back(store: Store) -> None:
    host = FakeHost(load_facts(GOLDEN / "isolated-and-offline.json"))
    host.values[Setting("rps", "eth0", "14")] = "0"
    run(host, store)
    lines = preview(host, store, "eth0", force=False)
    assert lines[Setting("channels", "eth0", "combined")] == "16"
    # XPS of queue 15 was set; its RPS and RFS were off. RPS of queue 14 went to CPU 0.
    assert lines[Setting("xps", "eth0", "15")] == "15"
    assert lines[Setting("rps", "eth0", "14")] == "0"
    assert not {Setting("rps", "eth0", "15"), Setting("rfs", "eth0", "15")} & lines.keys()


def test_a_damaged_journal_is_said(store: Store, tmp_path: Path, tg3: FakeHost) -> None:
    (tmp_path / "eth0.json").write_text("{")
    with pytest.raises(FastsocketError, match="cannot be read"):
        undo(tg3, store, "eth0")


def test_undo_of_nothing(tg3: FakeHost, store: Store) -> None:
    assert undo(tg3, store, "eth0") is None


def test_a_setting_survives_its_key() -> None:
    for setting in (Setting("sysctl", "", "net.core.somaxconn"), Setting("irq", "eth0", "rx-1")):
        assert Setting.parse(str(setting)) == setting
        assert setting.what
    assert Journal("eth0", {}, "b", "applied", "short", {}, {}).format == 1
