"""What a fleet shows of itself: a live table on a terminal, one plain line for each event elsewhere."""

import time
from dataclasses import dataclass, replace
from enum import Enum, auto
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table


class State(Enum):
    """How far a group is, in the order in which a table shows them."""

    STARTED = auto()
    WORKING = auto()
    WAITING = auto()
    OVER = auto()


@dataclass(frozen=True)
class Event:
    """Something that happened to a group; `text` says it to people."""

    group: str
    state: State
    text: str
    node: str = ""


class Progress:
    """The last event of each group of a fleet, since when it is at work, and what had to be done twice."""

    def __init__(self, console: Console) -> None:
        self.console, self.rows, self.since = console, dict[str, Event](), dict[str, float]()
        self.retried: list[str] = []
        self.live = Live(get_renderable=self.table, console=console, refresh_per_second=2, redirect_stdout=False)

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def show(self, event: Event) -> None:
        """Takes in an event. A group that starts where it had already started was lost with its node."""
        before = self.rows.get(event.group, event)
        if event.state is State.STARTED:
            if before is not event and before.node:
                self.retried.append(f"{event.group}: lost with {before.node}, started again on {event.node}")
            self.since[event.group] = time.monotonic()
        self.rows[event.group] = event = replace(event, node=event.node or before.node)
        if not self.console.is_terminal:
            line = f"{event.group}{f' on {event.node}' if event.node else ''}: {event.text}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """A row for each group, those at work first, those that are over last."""
        over = sum(row.state is State.OVER for row in self.rows.values())
        table = Table("group", "node", "", "s", title=f"{over} of {len(self.rows)} groups", title_justify="left")
        for name, row in sorted(self.rows.items(), key=lambda item: item[1].state.value):
            at_work = row.state is not State.OVER and name in self.since
            table.add_row(name, row.node, row.text, f"{time.monotonic() - self.since[name]:.0f}" if at_work else "")
        return table
