"""Many voices at once: frames a second by the number of requests, a long text, first audio beside others, memory.

    python -m benchmarks.many_voices artifacts/synthetic-0.6b-custom-voice/int8/bundle [--rounds 5] [--slots 16]

"today" is a synthesizer with one slot, in the same process; the sides take turns in every round, each time from a
different one on. Writes benchmarks/results/many-voices-VARIANT-PRECISION.json and .svg, and the tables in README.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import vl_convert

from benchmarks.compare import machine
from benchmarks.side import LANGUAGE, TEXTS
from qwen3_tts_ov import Bundle, Synthesizer, memory

HERE = Path(__file__).parent
COUNTS = (1, 2, 4, 8, 16)
PIECES = 20
SPEAKERS = 8  # of the streams whose first audio and underruns are measured
# Each is most of half a minute for a slow reader, so that it is a piece by itself.
PARAGRAPH = "The long road through the hills is quiet today, and the few people who walk along it carry lamps and "
Figures = dict[str, list[float]]


def aggregate(synthesizer: Synthesizer, count: int, frames: int, turn: int) -> float:
    """Frames a second of so many requests together."""
    requests = [{"text": TEXTS[(turn + at) % len(TEXTS)], "seed": 100 * turn + at} for at in range(count)]
    start = time.perf_counter()
    spoken = list(synthesizer.speak_many(requests, language=LANGUAGE, max_frames=frames))
    return sum(len(speech.codes) for speech in spoken) / (time.perf_counter() - start)


def long_text(synthesizer: Synthesizer, **options: Any) -> float:
    """Seconds for a text of PIECES pieces; the caller has limited the frames of each."""
    text = " ".join(f"{PARAGRAPH * 3}rest." for _ in range(PIECES))
    start = time.perf_counter()
    with synthesizer.stream(text, language=LANGUAGE, seed=1, **options) as stream:
        for _ in stream:
            pass
    return time.perf_counter() - start


def stream(synthesizer: Synthesizer, frames: int, seed: int) -> tuple[float, int]:
    """Seconds until the first audio, and how often a player that starts with it and plays in real time runs dry."""
    dry, played_until, rate = 0, 0.0, synthesizer.model.sample_rate
    start = time.perf_counter()
    first = 0.0
    with synthesizer.stream(TEXTS[seed % len(TEXTS)], language=LANGUAGE, seed=seed, max_frames=frames) as chunks:
        for chunk in chunks:
            now = time.perf_counter()
            first = first or now - start
            dry += bool(played_until) and now > played_until
            played_until = max(played_until, now) + len(chunk) / rate
    return first, dry


def beside(synthesizer: Synthesizer, others: int, frames: int, turn: int) -> tuple[float, int]:
    """The figures of a stream that begins while others speak; the underruns are those of all."""
    found: list[tuple[float, int]] = []
    threads = [
        threading.Thread(target=lambda seed=seed: found.append(stream(synthesizer, 2 * frames, seed)))
        for seed in range(others)
    ]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    first, dry = stream(synthesizer, frames, turn)
    for thread in threads:
        thread.join()
    return first, dry + sum(each for _, each in found)


def measure(folder: str, rounds: int, frames: int, slots: int) -> dict[str, Any]:
    bundle = Bundle.load(folder)
    many = Synthesizer(bundle, slots=slots)
    if many.engine.batch is None:
        sys.exit(f"error: no batch here: {many.engine.why_alone}")
    counts = [count for count in COUNTS if count <= slots]
    for count in counts:
        aggregate(many, count, 4, 0)
    peaks = {"many_mb": memory.peak_bytes() / 1e6}
    today = Synthesizer(bundle)
    aggregate(today, 1, 4, 0)
    sides: dict[str, Callable[[int], float]] = {"today": lambda turn: aggregate(today, 1, frames, turn)}
    sides |= {str(n): lambda turn, n=n: aggregate(many, n, frames, turn) for n in counts}  # type: ignore[misc]
    speeds: Figures = {name: [] for name in sides}
    streams: Figures = {"alone": [], "beside": [], "underruns": []}
    for turn in range(rounds):
        names = list(sides)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            speeds[name].append(sides[name](turn))
        streams["alone"].append(stream(many, frames, turn)[0])
        first, dry = beside(many, min(slots, SPEAKERS) - 1, frames, turn)
        streams["beside"].append(first)
        streams["underruns"].append(dry)
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    many.model.generation["max_new_tokens"] = frames  # type: ignore[index]
    texts: Figures = {"piece_by_piece": [], "at_once": []}
    for _ in range(max(1, rounds // 2)):
        texts["piece_by_piece"].append(long_text(many, pieces_ahead=0))
        texts["at_once"].append(long_text(many))
    peaks["with_today_and_the_long_text_mb"] = memory.peak_bytes() / 1e6
    return {
        "bundle": f"{bundle.manifest['variant']}-{bundle.manifest['precision']}",
        "machine": machine(),
        "rounds": rounds,
        "frames": frames,
        "slots": slots,
        "frames_a_second": speeds,
        "first_audio_seconds": streams,
        "long_text_seconds": texts,
        "peak_memory": peaks,
    }


def table(run: dict[str, Any]) -> str:
    """The results in Markdown: best / median, ratios of these."""
    speeds = run["frames_a_second"]
    one, now = run["machine"], speeds["1"]
    lines = [
        f"{run['bundle']}, {one['processor']}, {one['cores']} cores, OpenVINO {one['openvino']}; "
        f"{run['rounds']} rounds of {run['frames']} frames a request, {run['slots']} slots, sides in turns:",
        "",
        "| requests | frames a second, all together | times one request's |",
        "|---|---:|---:|",
    ]
    for name, found in speeds.items():
        label = "1, with one slot" if name == "today" else name
        ratios = f"{max(found) / max(now):.2f} / {median(found) / median(now):.2f}"
        lines.append(f"| {label} | {max(found):.1f} / {median(found):.1f} | {ratios} |")
    text, first = run["long_text_seconds"], run["first_audio_seconds"]
    by_piece, at_once = text["piece_by_piece"], text["at_once"]
    speakers = min(run["slots"], SPEAKERS)
    lines += [
        "",
        f"A text of {PIECES} pieces takes {min(at_once):.1f} / {median(at_once):.1f} s, piece by piece "
        f"{min(by_piece):.1f} / {median(by_piece):.1f} s. First audio takes {median(first['alone']):.2f} s alone; "
        f"beside {speakers - 1} others {median(first['beside']):.2f} s (median; worst {max(first['beside']):.2f}), and "
        f"their players ran dry {sum(first['underruns']):.0f} times in {run['rounds']} rounds. "
        f"Peak memory is {run['peak_memory']['many_mb']:.0f} MB.",
    ]
    return "\n".join(lines)


def picture(run: dict[str, Any]) -> str:
    """Frames a second by the number of requests, as SVG; the dashed line is real time for all of them."""
    points = [
        {"requests": int(name), "frames": value, "figure": figure}
        for name, found in run["frames_a_second"].items()
        if name != "today"
        for figure, value in (("best", max(found)), ("median", median(found)))
    ]
    real_time = [{"requests": count, "frames": 12.5 * count} for count in (1, 16)]
    axes = {
        "x": {
            "field": "requests",
            "type": "quantitative",
            "scale": {"type": "log", "base": 2},
            "axis": {"values": list(COUNTS)},
        },
        "y": {"field": "frames", "type": "quantitative", "title": "frames a second, all together"},
    }  # fmt: skip
    curve = {
        "mark": {"type": "line", "point": True},
        "encoding": axes | {"color": {"field": "figure", "type": "nominal"}},
    }
    bound = {"data": {"values": real_time}, "mark": {"type": "line", "strokeDash": [4, 4]}, "encoding": axes}
    return vl_convert.vegalite_to_svg({"data": {"values": points}, "width": 480, "layer": [curve, bound]})


def write(run: dict[str, Any]) -> None:
    """The results, their picture, and the table in README.md between its two marks."""
    path = HERE / "results" / f"many-voices-{run['bundle']}.json"
    path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".svg").write_text(picture(run), encoding="utf-8")
    readme, mark = HERE / "README.md", f"many voices, {run['bundle']}"
    old = readme.read_text(encoding="utf-8")
    between = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)", re.DOTALL)
    readme.write_text(between.sub(lambda found: f"{found[1]}{table(run)}\n{found[2]}", old), encoding="utf-8")
    print(f"{path}\n\n{table(run)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=25, help="frames of 80 ms a request")
    parser.add_argument("--slots", type=int, default=16)
    given = parser.parse_args()
    write(measure(given.bundle, given.rounds, given.frames, given.slots))
