"""The results of `benchmarks.compare` for readers: a table and ratios in Markdown, and a chart.

    python -m benchmarks.table build/bench/0.6b.json

prints the table (best / median of the rounds, milliseconds per frame of 80 ms) and the ratios, and draws the parts of a
frame as SVG beside the input. Each ratio is given for the best values, and as the median of the ratios of all rounds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import vl_convert

COLUMNS = {
    "talker": "talker_ms_a_frame",
    "code predictor": "code_predictor_ms_a_frame",
    "speech decoder": "speech_decoder_ms_a_frame",
    "text to WAV": "whole_ms_a_frame",
    "first audio": "first_audio_ms",
}
PARTS = ("talker", "code_predictor", "speech_decoder")
Run = Mapping[str, Any]


def rows(run: Run) -> Iterator[str]:
    """The table's lines, after one that states machine and method."""
    machine = run["machine"]
    yield (
        f"{machine['processor']}, {machine['cores']} cores, OpenVINO {machine['openvino']}; "
        f"{run['rounds']} rounds of {run['frames']} frames, sides in turns:"
    )
    yield ""
    yield "| side | " + " | ".join(COLUMNS) + " |"
    yield "|---|" + "---:|" * len(COLUMNS)
    for name, side in run["sides"].items():
        yield f"| {name} | " + " | ".join(cell(side["figures"].get(measure)) for measure in COLUMNS.values()) + " |"
    for name, reason in run["skipped"].items():
        yield f"| {name} | not run: {reason} |" + " |" * (len(COLUMNS) - 1)


def ratios(run: Run) -> Iterator[str]:
    """How this project's sides compare with the others, with the plain read, and their first audio with its bound."""
    sides = {name: side["figures"] for name, side in run["sides"].items()}
    own = [name for name in sides if name.startswith("ours-")]
    for place, name in enumerate(own):
        ours = sides[name]
        for other, theirs in sides.items():
            if "seconds" in theirs and other not in own[place:]:
                for measure, words in (
                    ("three_parts_ms_a_frame", "all three parts"),
                    ("whole_ms_a_frame", "text to WAV"),
                ):
                    yield f"- {name} takes {ratio(ours[measure], theirs[measure])} times as long as {other}, {words}"
        frames = [sum(parts) for parts in zip(*(ours[f"{part}_ms_a_frame"] for part in PARTS), strict=True)]
        bound = [prefill + 5 * frame for prefill, frame in zip(ours["prefill_ms"], frames, strict=True)]
        yield f"- {name}: first audio takes {ratio(ours['first_audio_ms'], bound)} of prefill and 5 frames"
        reading = sides.get(f"read-{name.removeprefix('ours-')}", {})
        for part in PARTS[:2] if reading else ():
            measure = f"{part}_ms_a_frame"
            rate = ratio(reading[measure], ours[measure])
            yield f"- {name}: its {part} reads weights at {rate} times the rate of a plain read"


def ratio(ours: list[float], theirs: list[float]) -> str:
    """The ratio of the best values, and the median of the rounds' ratios."""
    by_round = median(one / other for one, other in zip(ours, theirs, strict=True))
    return f"{min(ours) / min(theirs):.2f} (median {by_round:.2f})"


def cell(values: list[float] | None) -> str:
    return "" if values is None else f"{min(values):.1f} / {median(values):.1f}"


def picture(run: Run) -> str:
    """The best time of each part of a frame by side, as SVG; a line marks the frame's duration."""
    points = [
        {"side": name, "part": part.replace("_", " "), "ms": min(side["figures"][f"{part}_ms_a_frame"])}
        for name, side in run["sides"].items()
        for part in PARTS
        if f"{part}_ms_a_frame" in side["figures"]
    ]
    bars = {
        "mark": "bar",
        "encoding": {
            "y": {"field": "side", "type": "nominal", "title": None, "sort": {"op": "sum", "field": "ms"}},
            "x": {"field": "ms", "type": "quantitative", "title": "ms per frame of 80 ms, best round"},
            "color": {"field": "part", "type": "nominal", "title": None, "sort": [p.replace("_", " ") for p in PARTS]},
        },
    }
    frame = {"mark": {"type": "rule", "strokeDash": [4, 4]}, "encoding": {"x": {"datum": 80}}}
    return vl_convert.vegalite_to_svg({"data": {"values": points}, "width": 480, "layer": [bars, frame]})


def main(path: Path) -> None:
    run = json.loads(path.read_text())
    print("\n".join([*rows(run), "", *ratios(run)]))
    path.with_suffix(".svg").write_text(picture(run))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
