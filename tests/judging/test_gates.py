"""Gates: whether lower or higher is better, what counts as missed, and what never passes."""

import json

import pytest

from pipeline.judging import gates
from pipeline.judging.gates import GateError, Miss, missed, require
from pipeline.judging.scorers import SCORERS


@pytest.mark.parametrize(
    ("values", "bounds", "lines"),
    [
        ({"top1": 0.9, "kl": 0.05}, {"top1": 0.9, "kl": 0.05}, []),
        ({"top1": 0.89}, {"top1": 0.9}, ["talker: top1 is 0.89, bound: at least 0.9"]),
        ({"kl": 0.051}, {"kl": 0.05}, ["talker: kl is 0.051, bound: at most 0.05"]),
        ({"length": 2.1}, {"length": [0.3, 2.0]}, ["talker: length is 2.1, bound: 0.3 to 2.0"]),
        ({"length": 0.2}, {"length": [0.3, 2.0]}, ["talker: length is 0.2, bound: 0.3 to 2.0"]),
        ({"word_error_thai": 0.6}, {"word_error_thai": 0.5}, ["talker: word_error_thai is 0.6, bound: at most 0.5"]),
        ({"top5": 0.1}, {}, []),
        ({}, {"pesq": 2}, ["talker: pesq is not measured (no compiler), bound: at least 2"]),
        ({}, {"stoi": 0.9}, ["talker: stoi is not measured (no figure), bound: at least 0.9"]),
    ],
)  # fmt: skip
def test_missed_bounds(values, bounds, lines):
    found = missed("talker", values, bounds, {"pesq": "no compiler"})
    assert [str(miss) for miss in found] == lines
    assert [Miss(**json.loads(json.dumps(miss.entry()))) for miss in found] == found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_never_passes(value):
    for bounds in ({}, {"kl": 1}):
        with pytest.raises(GateError, match=r"talker: kl is .*not finite"):
            missed("talker", {"kl": value}, bounds)


def test_every_missed_bound_on_correctness_is_named():
    with pytest.raises(
        GateError, match=r"frames is 1, bound: at least 3; a: clipped_fraction is 0.5, bound: at most 0"
    ):
        require("a", {"frames": 1, "clipped_fraction": 0.5}, {"frames": 3, "clipped_fraction": 0})


def test_every_figure_of_every_scorer_is_declared():
    for scorer in SCORERS.values():
        for figure in scorer.figure_names(["english"]):
            assert gates.measure(figure).meaning
