"""What a fleet shows of itself: a live table on a terminal, one plain line for each event elsewhere."""

import time
from dataclasses import dataclass, replace
from enum import Enum, auto

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
    since: float | None = None  # when the group started, by the clock of the driver


class Progress:
    """The last event of each group of a fleet, and what had to be done twice; `live` shows the table."""

    def __init__(self, console: Console) -> None:
        self.console, self.rows, self.retried = console, dict[str, Event](), list[str]()
        self.live = Live(
            get_renderable=self.table,
            console=console,
            refresh_per_second=2,
            redirect_stdout=False,
            transient=not console.is_terminal,
        )

    def show(self, event: Event) -> None:
        """Takes in an event. A group that starts where it had already started was lost with its node."""
        before = self.rows.get(event.group, event)
        started = event.state is State.STARTED
        if started and before.since:
            self.retried.append(f"{event.group}: lost with {before.node}, started again on {event.node}")
        since = time.monotonic() if started else before.since
        self.rows[event.group] = event = replace(event, node=event.node or before.node, since=since)
        if not self.console.is_terminal:
            line = f"{event.group}{f' on {event.node}' if event.node else ''}: {event.text}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """A row for each group, those at work first, those that are over last."""
        over = sum(row.state is State.OVER for row in self.rows.values())
        table = Table("group", "node", "", "s", title=f"{over} of {len(self.rows)} groups", title_justify="left")
        for row in sorted(self.rows.values(), key=lambda row: row.state.value):
            at_work = row.since if row.state is not State.OVER else None
            table.add_row(row.group, row.node, row.text, f"{time.monotonic() - at_work:.0f}" if at_work else "")
        return table
