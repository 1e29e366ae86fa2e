# SPDX-License-Identifier: GPL-2.0-or-later
"""Which queue an interrupt serves: the names of each driver, and the tree that they come from."""

from pathlib import Path

import pytest

from fastsocket.nic.collect import read_irqs
from fastsocket.nic.irqs import assign_queues, classify

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "driver", "kind", "queue"),
    [
        ("eth0-TxRx-11", "ixgbe", "combined", 11),
        ("eth0-rx-3", "igb", "rx", 3),
        ("eth0-tx-3", "igb", "tx", 3),
        ("eth0", "igb", "other", 0),
        ("i40e-eth0-TxRx-5", "i40e", "combined", 5),
        ("i40e-0000:d8:00.0:misc", "i40e", "other", 0),
        ("ice-eth0-TxRx-63", "ice", "combined", 63),
        ("mlx5_comp7@pci:0000:81:00.0", "mlx5_core", "combined", 7),
        ("mlx5_comp7", "mlx5_core", "combined", 7),
        ("mlx5_async0@pci:0000:81:00.0", "mlx5_core", "other", 0),
        ("eth0-Tx-Rx-2", "ena", "combined", 2),
        ("ena-mgmnt@pci:0000:00:05.0", "ena", "other", 0),
        ("virtio2-input.4", "virtio_net", "rx", 4),
        ("virtio2-output.4", "virtio_net", "tx", 4),
        ("virtio2-config", "virtio_net", "other", 0),
        ("eth0-txrx-1", "tg3", "combined", 0),
        ("eth0-rx-4", "tg3", "rx", 3),
        ("eth0-tx-0", "tg3", "tx", 0),
        ("eth0-0", "tg3", "other", 0),
        ("eth0-0", "bnx2", "combined", 0),
        ("eth0-7", "bnx2", "combined", 7),
        ("eth0-fp-6", "bnx2x", "combined", 6),
        ("eth0-TxRx-0", "bnxt_en", "combined", 0),
        ("eth0-rxtx-1", "vmxnet3", "combined", 1),
        ("eth0-q3-rx", "vif", "rx", 3),
        ("eth0-q3-tx", "vif", "tx", 3),
        ("eth0-rx-0", "e1000e", "rx", 0),
    ],
)
def test_names_of_drivers(name: str, driver: str, kind: str, queue: int) -> None:
    assert classify(name, "eth0", driver) == (kind, queue)


def test_gve_sends_on_the_first_half() -> None:
    names = [f"gve-ntfy-blk{block}@pci:0000:00:04.0" for block in range(4)]
    irqs = assign_queues([(9 + n, name, "0") for n, name in enumerate(names)], "eth0", "gve")
    assert [(irq.kind, irq.queue) for irq in irqs] == [("tx", 0), ("tx", 1), ("rx", 0), ("rx", 1)]


def test_a_single_interrupt_serves_all() -> None:
    (irq,) = assign_queues([(17, "eth0", "0-3")], "eth0", "8139cp")
    assert (irq.kind, irq.queue) == ("combined", 0)


def test_interrupts_are_those_of_the_bus_device(tmp_path: Path) -> None:
    # A virtio card's own device has none; its parent on the PCI bus has them.
    pci = tmp_path / "sys/devices/pci0000:00/0000:00:03.0"
    for number, action in ((37, "virtio2-config"), (38, "virtio2-input.0"), (39, "")):
        (pci / "msi_irqs").mkdir(parents=True, exist_ok=True)
        (pci / f"msi_irqs/{number}").write_text("msix\n")
        (tmp_path / f"sys/kernel/irq/{number}").mkdir(parents=True)
        (tmp_path / f"sys/kernel/irq/{number}/actions").write_text(f"{action}\n")
        (tmp_path / f"proc/irq/{number}").mkdir(parents=True)
        (tmp_path / f"proc/irq/{number}/smp_affinity_list").write_text("0-1\n")
    (pci / "virtio2/net/eth0").mkdir(parents=True)
    (pci / "virtio2/net/eth0/device").symlink_to("../../../virtio2")
    (tmp_path / "sys/class/net").mkdir(parents=True)
    (tmp_path / "sys/class/net/eth0").symlink_to(pci / "virtio2/net/eth0")
    irqs = read_irqs("eth0", "virtio_net", tmp_path)
    assert [(irq.number, irq.kind, irq.affinity) for irq in irqs] == [
        (37, "other", "0-1"),
        (38, "rx", "0-1"),
    ]
    assert read_irqs("eth9", "", tmp_path) == ()
