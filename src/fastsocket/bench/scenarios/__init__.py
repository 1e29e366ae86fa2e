# SPDX-License-Identifier: GPL-2.0-or-later
"""The scenarios, one module each; `SCENARIOS` is what the command line offers."""

from collections.abc import Mapping

from fastsocket.bench.scenario import Scenario
from fastsocket.bench.scenarios.crash import Crash
from fastsocket.bench.scenarios.keepalive import Keepalive
from fastsocket.bench.scenarios.lean import Lean
from fastsocket.bench.scenarios.local import Local
from fastsocket.bench.scenarios.longlived import Longlived
from fastsocket.bench.scenarios.overhead import Overhead
from fastsocket.bench.scenarios.proxy import Proxy
from fastsocket.bench.scenarios.redis import REDIS
from fastsocket.bench.scenarios.scale import Scale
from fastsocket.bench.scenarios.short import Short
from fastsocket.bench.scenarios.soak import Soak
from fastsocket.bench.scenarios.stall import Stall
from fastsocket.bench.scenarios.steer import Steer

__all__ = ["SCENARIOS"]

SCENARIOS: Mapping[str, Scenario] = {
    known.name: known
    for known in (
        Short(),
        Stall("stall", burn=False),
        Stall("stall-burn", burn=True),
        Crash(),
        Longlived(),
        Soak(),
        Overhead(),
        Keepalive(),
        Lean(),
        Local(),
        Proxy("proxy", by_rule=False),
        Proxy("proxy-rule", by_rule=True),
        *REDIS,
        Scale(),
        Steer(),
    )
}
