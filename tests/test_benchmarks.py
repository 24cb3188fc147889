"""The sides of a comparison: real workers on a tiny bundle, in turns; what the other engine prints is read."""

import sys

import pytest

from benchmarks.compare import alternate
from benchmarks.other_engine import read_times
from benchmarks.side import Side, SideError
from benchmarks.table import rows


@pytest.fixture
def start(request):
    """`start("ours", bundle)`: a worker, ended after the test."""

    def get(module: str, *arguments: object) -> Side:
        side = Side([sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)])
        request.addfinalizer(side.close)
        return side

    return get


def test_sides_speak_in_turns_and_their_figures_make_a_table(artifact, start):
    bundle = artifact("bundle", "tiny-custom-voice", "int8")
    sides = {"ours": start("ours", bundle), "read": start("bandwidth", bundle)}
    figures = alternate(sides, rounds=2, frames=3)
    assert figures["ours"]["frames"] == [3, 3]
    assert all(len(values) == 2 for side in figures.values() for values in side.values())
    assert min(figures["ours"]["three_parts_ms_a_frame"]) < min(figures["ours"]["whole_ms_a_frame"])
    assert min(figures["read"]["gigabytes_a_second"]) > 0
    machine = {"processor": "One", "cores": 2, "openvino": "1"}
    run = {"machine": machine, "rounds": 2, "frames": 3, "skipped": {"other": "absent"}}
    table = list(rows(run | {"sides": {name: {"figures": found} for name, found in figures.items()}}))
    assert len({line.count("|") for line in table[2:]}) == 1
    assert "| other | not run: absent |" in table[-1]


def test_a_side_that_cannot_run_says_why(start, tmp_path):
    with pytest.raises(SideError, match="there is no such program"):
        start("other_engine", tmp_path, tmp_path, "int8")
    with pytest.raises(SideError, match=r"nowhere"):
        start("ours", tmp_path / "nowhere")


def test_the_other_engines_times_are_read():
    log = """Prefill: 300 ms (20 tokens)
Generated 25 frames (2.00 s audio)
  Talker step: 250 ms
  Code Predictor: 900 ms
  Embed: 25 ms
  Codec head+sampling: 75 ms
Speech decoder: 1100 ms"""
    found = read_times(log)
    assert (found["frames"], found["talker_ms_a_frame"], found["code_predictor_ms_a_frame"]) == (25, 14, 36)
    assert found["seconds"] == 2.65
    with pytest.raises(SideError, match="no speech_decoder; it said"):
        read_times(log.rpartition("\n")[0])
