"""What `benchmarks.compare` wrote, as a table in Markdown: best / median of the rounds, milliseconds a frame of 80 ms.

python -m benchmarks.table build/bench/0.6b.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

COLUMNS = {
    "talker": "talker_ms_a_frame",
    "code predictor": "code_predictor_ms_a_frame",
    "speech decoder": "speech_decoder_ms_a_frame",
    "text to WAV": "whole_ms_a_frame",
    "first audio": "first_audio_ms",
}


def rows(run: Mapping[str, Any]) -> Iterator[str]:
    """The table's lines, after one that says where and how it was measured."""
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


def cell(values: list[float] | None) -> str:
    return "" if values is None else f"{min(values):.1f} / {median(values):.1f}"


if __name__ == "__main__":
    print("\n".join(rows(json.loads(Path(sys.argv[1]).read_text()))))
