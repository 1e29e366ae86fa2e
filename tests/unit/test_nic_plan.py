# SPDX-License-Identifier: GPL-2.0-or-later
"""Properties of plans over random hosts, and the rules that they follow."""

import re
import tempfile
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nic_fake import FakeHost

from fastsocket.errors import UsageError
from fastsocket.host.cpulist import format_list, parse_list
from fastsocket.host.topology import Cpu, Topology
from fastsocket.nic.apply import apply
from fastsocket.nic.changes import ORDER, Plan, Request
from fastsocket.nic.facts import (
    Counts,
    HostFacts,
    Irqbalance,
    Netfilter,
    Nic,
    RxQueue,
    TxQueue,
    load_facts,
)
from fastsocket.nic.irqs import assign_queues
from fastsocket.nic.journal import Store
from fastsocket.nic.plan import choose_cpus, lay_out_cards, make_plan
from fastsocket.nic.profiles import PROFILES
from fastsocket.nic.restore import silent
from fastsocket.nic.text import facts_text

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[1] / "golden/nic"
SYSCTLS = {
    "net.core.somaxconn": "128",
    "net.core.netdev_max_backlog": "1000",
    "net.core.rps_sock_flow_entries": "0",
    "net.ipv4.ip_local_port_range": "32768 60999",
}


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Machines of up to 48 CPUs with any of them offline or isolated, but one."""
    nodes = draw(st.integers(1, 4))
    cores = draw(st.integers(1, 6))
    threads = draw(st.integers(1, 2))
    total = nodes * cores * threads
    offline = draw(st.sets(st.integers(1, total), max_size=total // 2))
    isolated = draw(st.sets(st.integers(1, total), max_size=total // 2))
    cpus = []
    for number in range(total):
        place = number % (nodes * cores)
        siblings = [place + nodes * cores * thread for thread in range(threads)]
        if number in offline:
            cpus.append(Cpu(number, online=False))
            continue
        node = place // cores
        cpus.append(
            Cpu(
                number,
                place,
                node,
                node,
                node * cores,
                tuple(cpu for cpu in siblings if cpu not in offline),
                isolated=number in isolated,
            )
        )
    rows = {one: tuple(10 if one == two else 21 for two in range(nodes)) for one in range(nodes)}
    return Topology(tuple(cpus), rows)


@st.composite
def cards(draw: st.DrawFn, name: str, cpus: int) -> Nic:
    """Cards of several makes, whose numbers of queues may or may not be changed."""
    driver, combined = draw(
        st.sampled_from(
            [("ixgbe", True), ("mlx5_core", True), ("virtio_net", False), ("unknown", True)]
        )
    )
    now = draw(st.integers(1, 24))
    most = draw(st.integers(now, 40)) if draw(st.booleans()) else now
    names = (
        [f"{name}-TxRx-{queue}" for queue in range(now)]
        if combined
        else [f"v-{way}.{queue}" for way in ("input", "output") for queue in range(now)]
    )
    affinity = draw(st.sampled_from(["0", f"0-{cpus - 1}"]))
    limited = driver == "ixgbe"
    return Nic(
        name=name,
        kind="card",
        ifindex=draw(st.integers(2, 99)),
        driver=driver,
        model="8086:10fb",
        node=draw(st.integers(-1, 3)),
        channels=Counts({"combined": now}, {"combined": most}),
        rings=Counts({"rx": 512}, {"rx": 4096}),
        coalesce=draw(st.sampled_from([{}, {"rx-usecs": 8, "adaptive-rx": 0}, {"rx-usecs": 50}])),
        offloads={"rx-ntuple-filter": False},
        indirection=tuple(bucket % min(now, 16 if limited else now) for bucket in range(128)),
        rule_limit=draw(st.sampled_from([0, 16, 1024])),
        irqs=assign_queues(
            [(30 + index, irq, affinity) for index, irq in enumerate(names)], name, driver
        ),
        rx=tuple(RxQueue(affinity if draw(st.booleans()) else "", 0) for _ in range(now)),
        tx=tuple(TxQueue("") for _ in range(now)),
        qdisc="mq",
    )


@st.composite
def hosts(draw: st.DrawFn) -> HostFacts:
    topology = draw(topologies())
    total = len(topology.cpus)
    allowed = draw(st.sets(st.integers(0, total - 1), max_size=total)) | {0}
    nics = [draw(cards("eth0", total))]
    if draw(st.booleans()):
        nics.append(draw(cards("eth1", total)))
        bond = Nic(name="bond0", kind="bond", driver="bonding", lower=("eth0", "eth1"))
        nics.insert(0, bond)
    return HostFacts(
        target=nics[0].name,
        kernel="6.1",
        topology=topology,
        allowed=format_list(allowed),
        possible=total,
        nics=tuple(nics),
        sysctls=SYSCTLS,
        irqbalance=draw(
            st.sampled_from([Irqbalance(), Irqbalance(7, "/run/irqbalance/irqbalance7.sock")])
        ),
    )


PROFILE = st.sampled_from(sorted(PROFILES))


@given(hosts(), PROFILE)
@settings(max_examples=60, deadline=None)
def test_every_queue_has_one_usable_cpu_and_none_has_two_before_all_have_one(
    facts: HostFacts, profile: str
) -> None:
    cpus = set(choose_cpus(facts, Request(profile)))
    given_queues: Counter[int] = Counter()
    for layout in lay_out_cards(facts, Request(profile)):
        assert len(layout.rx) == len(layout.tx) >= 1
        assert set(layout.rx) <= cpus
        given_queues.update(layout.rx)
    for cpu in cpus:
        usable = facts.topology.cpu(cpu)
        assert usable.online and not usable.isolated and cpu in parse_list(facts.allowed)
    assert max(given_queues.values()) - min(given_queues[cpu] for cpu in cpus) <= 1
    for line in make_plan(facts, Request(profile)).changes:
        if line.setting.kind == "irq":
            assert int(line.new) in cpus


@given(hosts(), PROFILE)
@settings(max_examples=60, deadline=None)
def test_rps_feeds_each_cpu_without_packets_once_and_xps_covers_all(
    facts: HostFacts, profile: str
) -> None:
    cpus = set(choose_cpus(facts, Request(profile)))
    layouts = lay_out_cards(facts, Request(profile))
    reached = [cpu for layout in layouts for cpu in layout.rx[: layout.reach]]
    fed = [cpu for layout in layouts for share in layout.shares for cpu in share]
    assert sorted(fed) == sorted(cpus - set(reached))
    sizes = [len(share) for layout in layouts for share in layout.shares]
    assert max(sizes) - min(sizes) <= 1


@given(hosts(), PROFILE)
@settings(max_examples=50, deadline=None)
def test_the_plan_of_an_applied_host_is_empty(facts: HostFacts, profile: str) -> None:
    host = FakeHost(facts)
    request = Request(profile, (80,))

    def make() -> tuple[HostFacts, Plan]:
        return host.now(), make_plan(host.now(), request)

    with tempfile.TemporaryDirectory() as folder:
        apply(host, Store(Path(folder)), facts.target, make)
    left = make_plan(host.now(), request).changes
    assert left == (), [line.what for line in left]


@given(hosts(), PROFILE)
@settings(max_examples=30, deadline=None)
def test_every_line_says_why(facts: HostFacts, profile: str) -> None:
    changes = make_plan(facts, Request(profile)).changes
    assert [line.setting.kind for line in changes] == sorted(
        (line.setting.kind for line in changes), key=ORDER.index
    )
    for line in changes:
        assert line.what and line.why and line.risk and line.old != line.new
    assert len({line.setting for line in changes}) == len(changes)


def test_physical_cores_of_the_card_s_node_come_first() -> None:
    facts = load_facts(GOLDEN / "bnx2-8-cores-2-packages.json")
    (layout,) = lay_out_cards(facts, Request())
    assert layout.rx == [0, 2, 4, 6, 1, 3, 5, 7]
    assert layout.shares == [[8], [10], [12], [14], [9], [11], [13], [15]]


def test_cpus_of_the_user_are_kept() -> None:
    facts = load_facts(GOLDEN / "i40e-32-cores-2-nodes.json")
    (layout,) = lay_out_cards(facts, Request(cpus=(16, 17, 48)))
    assert layout.channels == {"combined": 3} and layout.rx == [16, 17, 48]


def test_what_only_root_sees_is_said() -> None:
    facts = load_facts(GOLDEN / "tg3-8-cores.json")
    hidden = msgspec.structs.replace(
        facts, netfilter=Netfilter(visible=False), irqbalance=Irqbalance(7, refused=True)
    )
    plan = make_plan(hidden, Request())
    assert [note.why for note in plan.notes] == [
        "that needs root and the nft command",
        "that needs root",
    ]
    assert plan.changes == make_plan(facts, Request()).changes
    assert "netfilter: not seen without root and nft" in facts_text(hidden)


def test_ports_without_tracking_add_up() -> None:
    facts = load_facts(GOLDEN / "igb-4-cores-firewall.json")
    there = msgspec.structs.replace(facts.netfilter, notrack_ports=(80, 443), can_notrack=True)
    tracked = msgspec.structs.replace(facts, netfilter=there)
    for ports, wanted in (((), []), ((443,), []), ((8080, 443), ["80,443,8080"])):
        lines = make_plan(tracked, Request(ports=ports)).changes
        assert [line.new for line in lines if line.setting.kind == "notrack"] == wanted


def test_kinds_can_be_left_out() -> None:
    facts = load_facts(GOLDEN / "tg3-8-cores.json")
    kinds = {line.setting.kind for line in make_plan(facts, Request(skip=("irq", "ring"))).changes}
    assert kinds == {"channels", "coalesce", "rps", "xps", "sysctl"}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("fast"), "there is no profile fast.*short"),
        (Request(skip=("irqs",)), "there is no kind irqs.*channels"),
        (Request(cpus=(99,)), "no CPU is left"),
    ],
)
def test_bad_requests_are_said(request_: Request, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_plan(load_facts(GOLDEN / "tg3-8-cores.json"), request_)


def test_an_uneven_rss_table_is_made_even() -> None:
    facts = load_facts(GOLDEN / "ena-8-cores.json")
    nic = msgspec.structs.replace(facts.nics[0], indirection=tuple([0] * 64 + [1] * 64))
    plan = make_plan(msgspec.structs.replace(facts, nics=(nic,)), Request())
    assert [line.new for line in plan.changes if line.setting.kind == "rss"] == ["equal 8"]


def test_progress_is_silent_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    line = make_plan(load_facts(GOLDEN / "tg3-8-cores.json"), Request()).changes[0]
    silent(line.setting, line.new)
    assert capsys.readouterr() == ("", "")


def test_facts_whose_cpus_are_no_list_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    text = (GOLDEN / "tg3-8-cores.json").read_text()
    path.write_text(re.sub(r'"allowed": "[^"]*"', '"allowed": "abc"', text))
    with pytest.raises(UsageError, match="holds no host facts"):
        load_facts(path)
