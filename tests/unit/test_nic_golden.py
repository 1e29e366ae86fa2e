# SPDX-License-Identifier: GPL-2.0-or-later
"""Golden hosts: recorded machines, each with the plan that was reviewed line by line.

To review a change of the planner, write the plans anew with
`python -m tests.unit.test_nic_golden` and read the difference.
"""

import time
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from fastsocket.cli.doctor import diagnosis_text
from fastsocket.host.doctor import Grade, diagnose
from fastsocket.nic.changes import Request
from fastsocket.nic.facts import HostFacts, load_facts
from fastsocket.nic.plan import make_plan
from fastsocket.nic.text import facts_text, plan_text
from fastsocket.nic.verdict import card_check, recorded_settings
from tests.golden.nic import build

pytestmark = pytest.mark.golden

GOLDEN = Path(__file__).parents[1] / "golden/nic"
HOSTS = sorted(path.stem for path in GOLDEN.glob("*.json"))
# Every host with the default profile, and each other profile where it shows.
CASES = [(host, "short") for host in HOSTS] + [
    ("ixgbe-24-cores-2-nodes", "proxy"),
    ("mlx5-128-cores-8-nodes", "proxy"),
    ("i40e-32-cores-2-nodes", "proxy"),
    ("bond-of-2", "long"),
    ("virtio-1-queue", "long"),
    ("igb-4-cores-firewall", "latency"),
    ("ice-32-cores", "latency"),
    ("tg3-8-cores", "latency"),
]
PORTS = (80, 443)


def expected(host: str, profile: str) -> Path:
    return GOLDEN / f"{host}.{profile}.txt"


def planned(host: str, profile: str) -> str:
    facts = load_facts(GOLDEN / f"{host}.json")
    return plan_text(make_plan(facts, Request(profile, PORTS))) + "\n"


def judged(host: str) -> str:
    facts = load_facts(GOLDEN / f"{host}.json")
    settings = recorded_settings(facts)
    found = diagnose(settings, facts.load, None, (card_check(facts),))
    return diagnosis_text(found, "the recorded host") + "\n"


@pytest.mark.parametrize("host", HOSTS)
def test_verdict_is_the_reviewed_one(host: str) -> None:
    assert judged(host) == (GOLDEN / f"{host}.doctor.txt").read_text()


@pytest.mark.parametrize(
    ("driver", "kind", "grade"),
    [
        ("veth", "virtual", Grade.GOOD),
        ("", "loopback", Grade.GOOD),
        ("tun", "virtual", Grade.UNKNOWN),
        ("bridge", "bridge", Grade.UNKNOWN),
    ],
)
def test_nothing_is_claimed_of_a_device_without_queues_of_a_card(
    driver: str, kind: Literal["virtual", "loopback", "bridge"], grade: Grade
) -> None:
    facts = load_facts(GOLDEN / "container-veth.json")
    nic = msgspec.structs.replace(facts.nics[0], driver=driver, kind=kind)
    assert card_check(msgspec.structs.replace(facts, nics=(nic,))).grade is grade


@pytest.mark.parametrize(("host", "profile"), CASES)
def test_plan_is_the_reviewed_one(host: str, profile: str) -> None:
    assert planned(host, profile) == expected(host, profile).read_text()


def builders() -> dict[str, HostFacts]:
    return {name: make() for name, make in build.HOSTS.items()}


def test_fixtures_are_those_of_the_builder() -> None:
    built = builders()
    assert sorted(built) == HOSTS
    for name, facts in built.items():
        # A round trip makes both sides the same kinds of sequences.
        again = msgspec.json.decode(msgspec.json.encode(facts), type=HostFacts)
        assert load_facts(GOLDEN / f"{name}.json") == again, name


def test_there_are_enough_hosts() -> None:
    drivers = {nic.driver for host in HOSTS for nic in load_facts(GOLDEN / f"{host}.json").cards}
    wanted = {"ixgbe", "igb", "tg3", "bnx2", "i40e", "ice", "mlx5_core", "ena", "gve", "virtio_net"}
    assert len(HOSTS) >= 12 and wanted <= drivers


def test_plan_of_128_cores_is_quick() -> None:
    start = time.process_time()
    planned("mlx5-128-cores-8-nodes", "proxy")
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("host", HOSTS)
def test_facts_are_shown(host: str) -> None:
    facts = load_facts(GOLDEN / f"{host}.json")
    text = facts_text(facts)
    for nic in facts.nics:
        assert f"\n{nic.name}: {nic.kind}" in text
        for irq in nic.irqs:
            assert irq.name in text


if __name__ == "__main__":
    for one, kind in CASES:
        expected(one, kind).write_text(planned(one, kind))
    for one in HOSTS:
        (GOLDEN / f"{one}.doctor.txt").write_text(judged(one))
