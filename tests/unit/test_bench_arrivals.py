# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways for packets to arrive that the kernel does not have."""

from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest

from fastsocket.bench import arrivals
from fastsocket.bench.modes import Mode
from fastsocket.errors import MissingFeatureError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("mode", [Mode.RFS, Mode.NO_EARLY_DEMUX, Mode.NO_SKB_DEFER])
def test_a_missing_switch_is_a_missing_feature(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_FLOWS", "_DEMUX", "_DEFER"):
        monkeypatch.setattr(arrivals, name, tmp_path / "none")
    netspace = Mock(entered=nullcontext)
    with (
        pytest.raises(MissingFeatureError, match="none is not there"),
        arrivals.arriving(mode, netspace, "lo", [0], rule=False),
    ):
        pass
    assert not list(tmp_path.iterdir())
