# SPDX-License-Identifier: GPL-2.0-or-later
"""The live view: CPUs above, what the select programs decide, workers below, keys at the bottom."""

from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.timer import Timer
from textual.widgets import DataTable, Footer, Static

from fastsocket.observe.lines import (
    CELL,
    SORTS,
    core_grid,
    slot_columns,
    slot_row,
    sort_slots,
    totals,
)
from fastsocket.observe.sample import Rates, Sample, Source, rates

__all__ = ["LiveView"]

_FASTEST, _SLOWEST = 0.25, 16.0
_ROOMY = 50
"""Columns in which headline and keys have room around them."""
_NOBODY = "No accelerated application runs here: start one with 'fastsocket run -- COMMAND'."


class LiveView(App[None]):
    """Shows a source of samples.

    Args:
        source: Where samples come from; at its end the last picture stays.
        interval: Seconds between samples, at first.
        name: What is watched, for the headline.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: 1; text-style: bold; background: $panel; padding: 0 1; }
    #cores { height: auto; max-height: 10; }
    #grid { height: auto; }
    #totals { height: auto; padding: 0 1; background: $boost; }
    #nobody { padding: 1; display: none; }
    #workers { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("p,space", "pause", "Pause", key_display="p"),
        Binding("s", "sort", "Sort"),
        Binding("plus,equals_sign", "faster", "Faster", key_display="+"),
        Binding("minus", "slower", "Slower", key_display="-"),
    ]

    def __init__(self, source: Source, interval: float, name: str) -> None:
        super().__init__()
        self._source, self._interval, self._watched = source, interval, name
        self._before: Sample | None = None
        self._shown: Rates | None = None
        self._paused = self._ended = False
        self._sort = SORTS[0]
        self._pace: Timer | None = None

    def compose(self) -> ComposeResult:
        """Lay the screen out."""
        yield Static(id="head")
        with VerticalScroll(id="cores", can_focus=False):
            yield Static(id="grid")
        yield Static(id="totals")
        yield Static(_NOBODY, id="nobody")
        yield DataTable(id="workers", cursor_type="none", zebra_stripes=True)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Take the first sample and start the pace."""
        self._sample()
        self._set_pace()

    def on_resize(self) -> None:
        """Lay the CPUs out anew; narrow screens have less between the keys."""
        self.query_one(Footer).compact = self.size.width < _ROOMY
        self._show()

    def action_pause(self) -> None:
        """Stop and go on."""
        self._paused = not self._paused
        self._show()

    def action_sort(self) -> None:
        """Sort workers by the next thing."""
        self._sort = SORTS[(SORTS.index(self._sort) + 1) % len(SORTS)]
        self._show()

    def action_faster(self) -> None:
        """Halve the time between samples."""
        self._interval = max(_FASTEST, self._interval / 2)
        self._set_pace()

    def action_slower(self) -> None:
        """Double the time between samples."""
        self._interval = min(_SLOWEST, self._interval * 2)
        self._set_pace()

    def _set_pace(self) -> None:
        if self._pace is not None:
            self._pace.stop()
        self._pace = self.set_interval(self._interval, self.tick)
        self._show()

    def tick(self) -> None:
        """Take the next sample, unless the view is paused or its recording has ended."""
        if not self._paused and not self._ended:
            self._sample()

    def _sample(self) -> None:
        """Take a sample and show what happened since the one before."""
        sample = self._source.read()
        if sample is None:
            self._ended = True
        else:
            if self._before is not None:
                self._shown = rates(self._before, sample)
            self._before = sample
        self._show()

    def _show(self) -> None:
        """Write the last rates to the screen."""
        state = "end of the recording" if self._ended else "paused" if self._paused else "live"
        if self.size.width < _ROOMY:
            head = f"{self._watched}  {state}  {self._interval:g} s  by {self._sort}"
        else:
            pace = f"every {self._interval:g} s  sorted by {self._sort}"
            head = f"fastsocket top  {self._watched}  {state}  {pace}"
        self.query_one("#head", Static).update(Text(head, no_wrap=True, overflow="ellipsis"))
        table, nobody = self.query_one("#workers", DataTable), self.query_one("#nobody", Static)
        grid = self.query_one("#grid", Static)
        if self._shown is None:
            grid.update(core_grid((), self.size.width))
            return
        grid.update(core_grid(self._shown.cores, max(CELL, self.size.width)))
        self.query_one("#totals", Static).update(totals(self._shown))
        columns = slot_columns(self.size.width)
        if list(table.columns) != [name for name, _, _ in columns]:
            table.clear(columns=True)
            for name, heading, width in columns:
                table.add_column(heading, width=width, key=name)
        table.clear()
        for use in sort_slots(self._shown.slots, self._sort):
            cells = slot_row(use)
            table.add_row(*(cells[name] for name, _, _ in columns))
        table.display, nobody.display = bool(self._shown.slots), not self._shown.slots
