"""Every case of tests/edges/ is tried for real; `make edges` writes what came out to docs/edges.md."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen3_tts_ov import Bundle, Synthesizer

from .case import Desk
from .table import KINDS, PAGE, page, write

ALL = [(kind, case) for kind, (_, cases) in KINDS.items() for case in cases]


@pytest.fixture(scope="module")
def rows() -> Iterator[list[tuple[str, str, str]]]:
    """What came out of the cases; written to the page where `make edges` asks for it."""
    tried: list[tuple[str, str, str]] = []
    yield tried
    if "EDGES" in os.environ:
        write(tried)


@pytest.fixture(scope="module")
def synthesizer(artifact: Callable[..., Path], model_cache: Path) -> Callable[[str], Synthesizer]:
    """`synthesizer("base")`: compiled once for all cases."""
    made: dict[str, Synthesizer] = {}

    def get(kind: str) -> Synthesizer:
        if kind not in made:
            made[kind] = Synthesizer(Bundle.load(artifact("bundle", f"tiny-{kind}")), cache_dir=model_cache)
        return made[kind]

    return get


@pytest.fixture
def desk(artifact, synthesizer, user_cache, tmp_path, monkeypatch) -> Desk:
    def bundle(kind: str) -> Path:
        return artifact("bundle", f"tiny-{kind}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(user_cache))
    names = {kind: str(bundle(kind)) for kind in ("base", "custom-voice")}
    return Desk(tmp_path, bundle, synthesizer, names)


@pytest.mark.parametrize(("kind", "case"), ALL, ids=[f"{kind}: {case.name}" for kind, case in ALL])
def test_a_case_at_the_edge_comes_out_as_expected(kind, case, desk, rows):
    outcome = desk.outcome(case)
    assert case.expected in outcome
    rows.append((kind, case.name, outcome))


@pytest.mark.skipif("EDGES" in os.environ, reason="the page is being written")
def test_the_page_shows_every_case():
    shown = re.findall(r"^\| (.*?) \| .* \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    expected = page((kind, case.name, "") for kind, case in ALL)
    assert shown == re.findall(r"^\| (.*?) \| .*\|$", expected, re.MULTILINE), "run `make edges`"


def test_names_of_cases_are_unique():
    assert len({(kind, case.name) for kind, case in ALL}) == len(ALL)
