"""Runs several programs in turns and records the cost of each utterance.

    python -m benchmarks.compare NAME [--rounds 7] [--frames 40] [--artifacts artifacts] [--engine FOLDER]
        [--reference VENV] [--only ours-int8 --only step-by-step ...]

NAME is a comparison below. The machine may be shared and its speed may change within minutes, so figures are only
compared within a run: sides alternate, all speak the same text in a round, and nothing is averaged over runs.
Writes build/bench/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.side import ROOT, TEXTS, Figures, Side, SideError

RESULTS = ROOT / "build" / "bench"
SMALL, LARGE = "synthetic-0.6b-custom-voice", "synthetic-1.7b-custom-voice"
REST = 0.3  # seconds between turns, in which the threads of the last side go to sleep


def commands(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The sides of a comparison, and the command that starts each."""
    variant = Path(arguments.artifacts, LARGE if arguments.name == "1.7b" else SMALL)
    python, checkpoint = [sys.executable, "-m"], str(variant / "checkpoint")
    official = [str(Path(arguments.reference).expanduser() / "bin" / "python"), "-m", "benchmarks.official", checkpoint]
    engine = [*python, "benchmarks.other_engine", str(Path(arguments.engine).expanduser()), checkpoint]
    int8, int4 = ([*python, "benchmarks.ours", str(variant / name / "bundle")] for name in ("int8", "int4"))
    reading = {"read-int8": [*python, "benchmarks.bandwidth", str(variant / "int8" / "bundle")]}
    if arguments.name == "1.7b":
        return {"ours-int8": int8} | reading
    return {
        "ours-int8": int8,
        "ours-int8-f32": [*int8, "f32"],
        "ours-int4": int4,
        **reading,
        "step-by-step-int8": [*python, "benchmarks.stepwise", str(variant / "int8" / "openarc" / "bundle")],
        "engine-int8": [*engine, "int8"],
        "engine-int4": [*engine, "int4"],
        "official-float32": [*official, "float32"],
        "official-bfloat16": [*official, "bfloat16"],
    }  # fmt: skip


@contextmanager
def started(wanted: Mapping[str, list[str]]) -> Iterator[tuple[dict[str, Side], dict[str, str]]]:
    """The sides that can run here, loaded one after another, and why the others cannot."""
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        skipped: dict[str, str] = {}
        for name, command in wanted.items():
            try:
                sides[name] = Side(command)
                stack.callback(sides[name].close)
            except (SideError, OSError) as error:
                skipped[name] = str(error)
            print(f"{name}: {skipped.get(name, 'loaded')}", file=sys.stderr)
        yield sides, skipped


def alternate(sides: Mapping[str, Side], rounds: int, frames: int) -> dict[str, dict[str, list[float]]]:
    """Every side's figures, one value per round. Each round starts with a different side; all are warmed up first."""
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in sides}
    names = list(sides)
    for side in sides.values():
        side.speak(TEXTS[-1], seed=0, frames=min(frames, 4))
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(REST)
            before = busy(other for key, other in sides.items() if key != name)
            found = sides[name].speak(TEXTS[turn % len(TEXTS)], seed=turn + 1, frames=frames)
            found["others_cpu_seconds"] = busy(other for key, other in sides.items() if key != name) - before
            for measure, value in complete(found).items():
                figures[name].setdefault(measure, []).append(value)
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return figures


def complete(found: Figures) -> Figures:
    """Adds the derived figures: the sum of the three parts, total time per frame, real-time factor."""
    parts = ("talker", "code_predictor", "speech_decoder")
    more = {}
    if all(f"{part}_ms_a_frame" in found for part in parts):
        more["three_parts_ms_a_frame"] = sum(found[f"{part}_ms_a_frame"] for part in parts)
    if "seconds" in found:
        more["whole_ms_a_frame"] = 1000 * found["seconds"] / found["frames"]
        more["real_time_factor"] = found["seconds"] / (0.08 * found["frames"])
    return found | more


def busy(sides: Iterator[Side]) -> float:
    """Processor seconds used by sides and their children; sides whose turn it is not should use none."""
    total = 0.0
    for side in sides:
        process = psutil.Process(side.pid)
        for one in (process, *process.children()):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def machine() -> dict[str, Any]:
    """The machine and versions that the figures apply to."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0].partition(": ")[2] if names else platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.platform(terse=True),
        "openvino": version("openvino"),
    }


def write(name: str, data: Mapping[str, Any]) -> None:
    """Writes build/bench/NAME.json atomically."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(data, indent=1) + "\n")
    partial.replace(path)
    print(path)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=("0.6b", "1.7b"))
    chosen = {"ROUNDS": "7", "ENGINE": "build/engine", "REFERENCE": "build/reference", **os.environ}  # set by make
    parser.add_argument("--rounds", type=int, default=chosen["ROUNDS"])
    parser.add_argument("--frames", type=int, default=40, help="frames of 80 ms per utterance")
    parser.add_argument("--artifacts", default="artifacts")
    parser.add_argument("--engine", default=chosen["ENGINE"], help="checkout of the C engine, after its build")
    parser.add_argument("--reference", default=chosen["REFERENCE"], help="virtual environment of the official package")
    parser.add_argument("--only", action="append", help="a side to run; repeatable")
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> None:
    wanted = commands(arguments)
    if unknown := set(arguments.only or ()) - set(wanted):
        sys.exit(f"error: unknown side {', '.join(sorted(unknown))}; known: {', '.join(wanted)}")
    wanted = {name: command for name, command in wanted.items() if not arguments.only or name in arguments.only}
    with started(wanted) as (sides, skipped):
        figures = alternate(sides, arguments.rounds, arguments.frames)
    about = {name: side.about for name, side in sides.items()}
    run = {"machine": machine(), "rounds": arguments.rounds, "frames": arguments.frames, "skipped": skipped}
    write(arguments.name, run | {"sides": {name: {"about": about[name], "figures": figures[name]} for name in sides}})


if __name__ == "__main__":
    main(parse(sys.argv[1:]))
