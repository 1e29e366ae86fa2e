# SPDX-License-Identifier: GPL-2.0-or-later
"""What the live view writes, as text of a given width; it knows nothing of the screen."""

from collections.abc import Sequence

from rich.text import Text

from fastsocket.observe.sample import CoreUse, Rates, SlotUse

__all__ = ["CELL", "SORTS", "core_grid", "slot_columns", "slot_row", "sort_slots", "totals"]

CELL = 20
"""Columns that one CPU takes, with the gap to the next."""

SORTS = ("slot", "accepts", "live", "waiting")
"""What workers can be sorted by; the first is the listeners' own order."""

_COLUMNS = {
    "listener": 19,
    "pid": 7,
    "cpu": 3,
    "live": 6,
    "acc/s": 7,
    "queue": 5,
    "spill/s": 7,
    "state": 8,
}
_FIGURES = ("pid", "cpu", "live", "acc/s", "queue", "spill/s")
_FEW_COLUMNS = ("pid", "cpu", "acc/s", "queue", "state")
_ALL_COLUMNS_FROM = 80

_BAR = 7
_SOFTIRQ, _REST, _FREE = "▓", "█", "·"  # three characters, so that colour is not needed


def core_grid(cores: Sequence[CoreUse], width: int) -> Text:
    """Return the use of every CPU, column by column, as many columns as `width` allows."""
    if not cores:
        return Text("waiting for the second sample…", "dim")
    columns = max(1, min(len(cores), width // CELL))
    rows = -(-len(cores) // columns)
    legend = f" cpu {_SOFTIRQ} softirq {_REST} other busy% softirq%"
    lines = [Text(legend, "dim", no_wrap=True, overflow="ellipsis")]
    for row in range(rows):
        line = Text(no_wrap=True)
        for core in cores[row::rows]:
            line.append_text(_cell(core))
        lines.append(line)
    return Text("\n").join(lines)


def _cell(core: CoreUse) -> Text:
    """Return "  3 ▓▓██···  57% 29 ": number, bar, busy percent, and softirq percent of it."""
    filled = round(core.busy / 100 * _BAR)
    soft = min(filled, round(core.softirq / 100 * _BAR))
    return Text.assemble(
        (f"{core.cpu:>3} ", "bold"),
        (_SOFTIRQ * soft, "magenta"),
        (_REST * (filled - soft), "cyan"),
        (_FREE * (_BAR - filled), "dim"),
        f"{core.busy:>4.0f}%",
        (f"{core.softirq:>3.0f} ", "magenta"),
    )


def totals(rates: Rates) -> Text:
    """Return what the select programs decided, and what rules counted."""
    accepts = sum(slot.accepts for slot in rates.slots)
    local = "–" if rates.local_percent is None else f"{rates.local_percent:.1f} %"
    text = Text.assemble(
        "accepts ",
        (f"{accepts:,.0f}/s", "bold"),
        "  local ",
        (local, "bold"),
        f"  spilled {rates.spilled:,.0f}/s",
        f"  passed {rates.passed:,.0f}/s",
    )
    stalled = sum(slot.stalled for slot in rates.slots)
    if stalled:
        text.append(f"  stalled {stalled}", "bold red")
    if rates.steering:
        counts = "  ".join(
            f"{name} {count:,.0f}/s" for name, count in sorted(rates.steering.items())
        )
        text.append(f"\nsteering: {counts}")
    return text


def slot_columns(width: int) -> list[tuple[str, Text, int]]:
    """Return name, heading and width of the worker table's columns that fit a screen.

    Eighty columns hold them all; forty hold those that tell which worker does not keep up.
    """
    names = _COLUMNS if width >= _ALL_COLUMNS_FROM else _FEW_COLUMNS
    return [
        (name, Text(f"{name:>{size}}" if name in _FIGURES else name), size)
        for name, size in _COLUMNS.items()
        if name in names
    ]


def slot_row(use: SlotUse) -> dict[str, Text]:
    """Return a worker's cells by column name."""
    slot, listener = use.slot, use.listener
    host = f"[{listener.address}]" if ":" in listener.address else listener.address
    figures = {
        "pid": str(slot.pid or "–"),
        "cpu": "–" if slot.cpu < 0 else str(slot.cpu),
        "live": f"{slot.live:,}",
        "acc/s": f"{use.accepts:,.0f}",
        "queue": str(slot.waiting),
        "spill/s": f"{use.spills:,.0f}",
    }
    return {
        "listener": Text(f"{host}:{listener.port}", overflow="ellipsis"),
        **{name: Text(text, justify="right") for name, text in figures.items()},
        "state": _state(use),
    }


def _state(use: SlotUse) -> Text:
    """Return what the worker does: "stalled" first, for it is what one looks for."""
    if use.stalled:
        return Text("stalled", "bold red")
    if use.slot.state != "claimed":
        return Text(use.slot.state, "yellow")
    return Text("busy" if use.slot.busy else "polling", "" if use.slot.busy else "dim")


def sort_slots(slots: Sequence[SlotUse], by: str) -> list[SlotUse]:
    """Return workers sorted by one of `SORTS`, the greatest first; "slot" keeps their order."""
    if by == "accepts":
        return sorted(slots, key=lambda use: -use.accepts)
    if by in ("live", "waiting"):
        return sorted(slots, key=lambda use: -int(getattr(use.slot, by)))
    return list(slots)
