"""What a fleet shows of itself: a live table on a terminal, one plain line for each event elsewhere."""

import time
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table


class State(Enum):
    """How far a group is."""

    WAITING = auto()
    STARTED = auto()
    WORKING = auto()
    OVER = auto()


@dataclass(frozen=True)
class Event:
    """Something that happened to a group; `text` says it to people."""

    group: str
    state: State
    text: str
    node: str = ""


@dataclass
class Row:
    """Where a group is, and what it does there."""

    state: State = State.WAITING
    text: str = ""
    node: str = ""
    since: float = 0.0


class Progress:
    """The groups of a fleet by name, and what had to be done twice."""

    def __init__(self, console: Console) -> None:
        self.console, self.rows = console, dict[str, Row]()
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
        row = self.rows.setdefault(event.group, Row())
        if event.state is State.STARTED:
            if row.node:
                self.retried.append(f"{event.group}: lost with {row.node}, started again on {event.node}")
            row.since = 0.0
        if event.state is not State.WAITING and not row.since:
            row.since = time.monotonic()
        row.state, row.text, row.node = event.state, event.text, event.node or row.node
        if not self.console.is_terminal:
            line = f"{event.group}{f' on {row.node}' if row.node else ''}: {event.text}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """A row for each group, those at work first, those that are over last."""
        over = sum(row.state is State.OVER for row in self.rows.values())
        table = Table("group", "node", "", "s", title=f"{over} of {len(self.rows)} groups", title_justify="left")
        order = [State.WORKING, State.STARTED, State.WAITING, State.OVER]
        for name, row in sorted(self.rows.items(), key=lambda item: order.index(item[1].state)):
            at_work = row.state in (State.STARTED, State.WORKING)
            table.add_row(name, row.node, row.text, f"{time.monotonic() - row.since:.0f}" if at_work else "")
        return table
