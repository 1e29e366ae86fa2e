# SPDX-License-Identifier: GPL-2.0-or-later
"""What a launch that fails leaves behind."""

from unittest.mock import Mock

import pytest

from fastsocket.app import launcher
from fastsocket.config import Parameters
from fastsocket.errors import FastsocketError

pytestmark = pytest.mark.unit


def test_a_launch_that_fails_takes_its_cgroup_away(monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = Mock(hooks=object(), environment={})
    monkeypatch.setattr(launcher, "_deliver", lambda preloads: deliver)
    monkeypatch.setattr(launcher, "StatusPage", Mock(side_effect=FastsocketError("no page")))
    with pytest.raises(FastsocketError, match="no page"):
        launcher.launch(["true"], Parameters(enable_receive_flow_deliver=1))
    deliver.close.assert_called_once_with()
    deliver.enter.assert_not_called()
