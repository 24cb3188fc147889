"""docs/edges.md: a table of every case and what came out. `make edges` writes it from a run of the tests."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.stage import ROOT

from . import bundles, errors, locked, outputs, recordings, server, text
from .case import Case

KINDS: dict[str, tuple[str, list[Case]]] = {
    "outputs": ("Files that it writes", outputs.CASES),
    "recordings": ("Recordings", recordings.CASES),
    "text": ("Texts", text.CASES),
    "bundles": ("Bundles", bundles.CASES),
    "server": ("Requests to the server", server.CASES),
    "errors": ("Errors", errors.CASES),
    "locked": ("Without a home, without permission", locked.CASES),
}
PAGE = ROOT / "docs" / "edges.md"

_HEAD = """# Cases at the edge

What happens when texts, recordings, files and clients are not as the examples show them: every case that a test tries
(`tests/edges/`), and what came out when `make edges` wrote this page.
"""


def page(rows: Iterable[tuple[str, str, str]]) -> str:
    """The page of (kind, name, what came out)."""
    came = {(kind, name): outcome for kind, name, outcome in rows}
    parts = [_HEAD]
    for kind, (title, cases) in KINDS.items():
        lines = [f"| {_cell(case.name)} | {_cell(came[kind, case.name])} |" for case in cases]
        parts.append("\n".join([f"## {title}: {len(cases)}\n", "| case | what came out |", "|---|---|", *lines, ""]))
    return "\n".join(parts)


def write(rows: Iterable[tuple[str, str, str]], path: Path = PAGE) -> None:
    path.write_text(page(rows), encoding="utf-8")


def _cell(text: str) -> str:
    """A text as a cell of a table: no character of it is markup, and a long one is shortened."""
    text = text if len(text) <= 240 else f"{text[:110]} ... {text[-110:]}"
    for character in "\\|<*_`":
        text = text.replace(character, f"\\{character}")
    return text
