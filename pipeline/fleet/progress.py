"""What a fleet shows of itself: a live table on a terminal, one plain line for each event elsewhere."""

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

OVER = ("done", "failed", "not built", "made elsewhere")


@dataclass
class Row:
    """Where a group is, and what it does there."""

    node: str = ""
    doing: str = "waits"
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

    def tell(self, group: str, node: str, doing: str) -> None:
        """An event. A group that starts where it had already started was lost with its node."""
        row = self.rows.setdefault(group, Row())
        if doing == "starts":
            if row.node:
                self.retried.append(f"{group}: lost with {row.node}, begun anew on {node}")
            row.since = time.monotonic()
        row.node, row.doing = node or row.node, doing
        if not self.console.is_terminal:
            line = f"{group}{f' on {row.node}' if row.node else ''}: {doing}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """A row for each group, those at work first."""
        over = sum(row.doing.startswith(OVER) for row in self.rows.values())
        table = Table("group", "node", "", "s", title=f"{over} of {len(self.rows)} groups", title_justify="left")
        order = sorted(self.rows.items(), key=lambda item: (not item[1].since, item[1].doing.startswith(OVER)))
        for name, row in order:
            seconds = "" if not row.since or row.doing.startswith(OVER) else f"{time.monotonic() - row.since:.0f}"
            table.add_row(name, row.node, row.doing, seconds)
        return table
