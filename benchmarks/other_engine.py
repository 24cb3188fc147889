"""Side: the C engine of github.com/gabriele-mastrapasqua/qwen3-tts, on the same checkpoint.

    python -m benchmarks.other_engine ENGINE CHECKPOINT int8|int4

ENGINE is its checkout, with the program `qwen_tts` built there by
`make blas SIMD=avx512bf16 EXTRA_CFLAGS=-I/usr/include/$(gcc -print-multiarch)`; on processors without bf16, SIMD is
avx512vnni, avx512 or auto. Its server prints no times, so every utterance is a process of its own, whose load time is
not counted.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.side import LANGUAGE, Figures, SideError, Speak, serve

# As its own notes advise for few cores: workers busy-wait, and audio is decoded after the codes.
ENVIRONMENT = {"QWEN_POOL_SPIN": "200000", "QWEN_NO_OVERLAP": "1"}
_TIMES = {
    "prefill": r"Prefill: (\d+) ms",
    "frames": r"Generated (\d+) frames",
    "talker": r"Talker step: (\d+) ms",
    "code_predictor": r"Code Predictor: (\d+) ms",
    "embed": r"Embed: (\d+) ms",
    "head": r"Codec head\+sampling: (\d+) ms",
    "speech_decoder": r"Speech decoder: (\d+) ms",
}


def read_times(log: str) -> Figures:
    """The figures of one utterance, from the engine's log; the talker includes its head and tables, as ours does."""
    found = {name: re.search(pattern, log) for name, pattern in _TIMES.items()}
    if missing := [name for name, match in found.items() if match is None]:
        raise SideError(f"the engine reports no {', '.join(missing)}; its log ends with: {log.strip()[-200:]}")
    times = {name: float(match.group(1)) for name, match in found.items() if match}
    frames, prefill = times.pop("frames"), times["prefill"]
    return {
        "seconds": sum(times.values()) / 1000,
        "frames": frames,
        "prefill_ms": prefill,
        "talker_ms_a_frame": (times["talker"] + times["embed"] + times["head"]) / frames,
        "code_predictor_ms_a_frame": times["code_predictor"] / frames,
        "speech_decoder_ms_a_frame": times["speech_decoder"] / frames,
    }


def load(engine: str, checkpoint: str, precision: str) -> tuple[Speak, dict[str, Any]]:
    program, threads = Path(engine, "qwen_tts"), str(len(os.sched_getaffinity(0)))
    if not program.is_file():
        raise SideError(f"{program}: there is no such program; benchmarks/other_engine.py says how to build it")
    speaker = next(iter(json.loads(Path(checkpoint, "config.json").read_text())["talker_config"]["spk_id"]))
    command = [program, "-d", checkpoint, f"--{precision}", "-j", threads, "-s", speaker, "-l", LANGUAGE]

    def speak(text: str, seed: int, frames: int, wav: str) -> Figures:
        asked = ["-t", text, "--seed", str(seed), "-m", str(frames), "-o", wav]
        environment = os.environ | ENVIRONMENT
        done = subprocess.run([*command, *asked], env=environment, capture_output=True, text=True, check=False)
        return read_times(done.stderr)

    return speak, {"precision": precision, "threads": int(threads)}


if __name__ == "__main__":
    serve(lambda: load(*sys.argv[1:]))
