# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of tests: each test has exactly one, and no kind that could run goes missing unseen.

`unit` and `golden` need nothing, `netns` needs root and network namespaces, `apps` runs real
servers, `kernel` boots virtual machines. The summary tells how many of each ran and why any was
skipped. With --require-kinds, or CI=true in the environment, a run over all tests fails where a
kind that this machine supports ran nothing.
"""

import collections
import ctypes
import importlib.util
import os
import shutil
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

# That the machine is busy is no fault of what is tested.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any")

CLONE_NEWNET = 0x40000000  # linux/sched.h


def _network_namespaces() -> bool:
    """Try one, in a child so that this process stays where it is."""
    if os.geteuid() != 0:
        return False
    child = os.fork()
    if child == 0:
        os._exit(0 if ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _virtual_machines() -> bool:
    return bool(shutil.which("qemu-system-x86_64")) and bool(importlib.util.find_spec("virtme"))


# In the order in which they run: what fails fastest comes first.
SUPPORT: dict[str, Callable[[], bool]] = {
    "unit": lambda: True,
    "golden": lambda: True,
    "netns": _network_namespaces,
    "apps": lambda: bool(shutil.which("nginx")),
    "kernel": _virtual_machines,
}


class Kinds:
    """Counts what ran, by kind, and judges the whole at the end of the session."""

    def __init__(self, required: bool) -> None:
        self.required = required
        self.collected: collections.Counter[str] = collections.Counter()
        self.ran: collections.Counter[str] = collections.Counter()
        self.kind_of: dict[str, str] = {}
        self.skips: list[tuple[str, str, str]] = []
        self.absent: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Refuse a test without exactly one kind; sort the kinds, keeping the order within."""
        wrong = []
        for item in items:
            kinds = _kinds(item)
            if len(kinds) == 1:
                self.collected[kinds[0]] += 1
                self.kind_of[item.nodeid] = kinds[0]
            else:
                wrong.append(f"{item.nodeid}: {' and '.join(kinds) or 'none'}")
        if wrong:
            raise pytest.UsageError(
                f"each test has exactly one of the markers {', '.join(SUPPORT)}; "
                f"not so: {'; '.join(wrong)}"
            )
        order = list(SUPPORT)
        items.sort(key=lambda item: order.index(_kinds(item)[0]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test that reached its own code, and note a skip with its reason."""
        kind = self.kind_of[report.nodeid]  # a report's keywords have the folder's name, too
        if report.skipped:
            reason = (
                report.longrepr[2] if isinstance(report.longrepr, tuple) else "expected failure"
            )
            self.skips.append((kind, report.nodeid, reason.removeprefix("Skipped: ")))
        elif report.when == "call":
            self.ran[kind] += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a complete run in which a kind that this machine supports ran nothing."""
        if self.required and _complete(session.config):
            self.absent = [kind for kind in SUPPORT if not self.ran[kind] and SUPPORT[kind]()]
        if self.absent and session.exitstatus in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print how many ran of each kind, and every skip with its reason."""
        terminalreporter.section("kinds")
        skipped = collections.Counter(kind for kind, _, _ in self.skips)
        for kind in SUPPORT:
            counts = f"{self.ran[kind]} ran, {skipped[kind]} skipped"
            terminalreporter.line(f"{kind}: {counts}, {self.collected[kind]} collected")
        for kind, nodeid, reason in self.skips:
            terminalreporter.line(f"skipped {kind} {nodeid}: {reason}")
        for kind in self.absent:
            terminalreporter.line(f"FAILED: this machine supports {kind} tests, but none ran")


def _kinds(item: pytest.Item) -> list[str]:
    return [kind for kind in SUPPORT if item.get_closest_marker(kind)]


def _complete(config: pytest.Config) -> bool:
    """Tell whether this run was asked for all tests, not for a selection."""
    option = config.option
    last_failed = getattr(option, "lf", False)  # absent without pytest's cache
    selected = option.keyword or option.markexpr or last_failed or option.collectonly
    return config.args_source is not pytest.Config.ArgsSource.ARGS and not selected


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --require-kinds; CI=true means the same."""
    parser.addoption(
        "--require-kinds",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="fail where a kind of test that this machine supports ran nothing",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the counter."""
    config.pluginmanager.register(Kinds(config.getoption("--require-kinds")), "kinds")
