"""Cost by context length, memory over long speech, start-up time, memory of a loaded bundle.

    python -m benchmarks.growth BUNDLE [--seconds 600]

Every figure is measured in a process of its own. Writes build/bench/growth-VARIANT-PRECISION.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from benchmarks.compare import machine, write
from benchmarks.side import LANGUAGE, TEXTS
from pipeline.stage import alone
from qwen3_tts_ov import Bundle, Synthesizer
from qwen3_tts_ov.engine import devices

CONTEXTS = (100, 1000, 4000)  # frames
STEPS = 25
STREAMED = "One sentence after another is read from a long book. "
MEGABYTE = 1e6


def context_cost(folder: str) -> dict[str, dict[str, float]]:
    """Best and median milliseconds of a talker step, by the number of frames before it.

    Embeddings are random, which does not change the cost of attention. Positions are filled a hundred at a time.
    """
    synthesizer = Synthesizer(Bundle.load(folder))
    width = synthesizer.model.config["talker_config"]["hidden_size"]
    rng, found, filled = np.random.default_rng(0), {}, 0
    with synthesizer.engine.session() as session:
        for context in CONTEXTS:
            while filled < context:
                session.talk(0.1 * rng.standard_normal((100, width), np.float32))
                filled += 100
            times = []
            for _ in range(STEPS):
                start = time.perf_counter()
                session.talk(0.1 * rng.standard_normal((1, width), np.float32))
                times.append(1000 * (time.perf_counter() - start))
            filled += STEPS
            found[str(context)] = {"best_ms": min(times), "median_ms": median(times)}
    return found


def streamed_memory(folder: str, seconds: float) -> list[dict[str, float]]:
    """Resident memory in MB after every ten seconds of the speech of a long text, with the time elapsed.

    A text is spoken in pieces of at most half a minute. `max_frames` would replace the limits of the pieces, so the
    text is longer than needed and the stream is closed early.
    """
    bundle = Bundle.load(folder)
    synthesizer = Synthesizer(bundle)
    text = STREAMED * (1 + round(seconds))
    spoken, start = 0.0, time.perf_counter()
    series: list[dict[str, float]] = []
    with synthesizer.stream(text, language=LANGUAGE, seed=1) as stream:
        for chunk in stream:
            spoken += len(chunk) / bundle.sample_rate
            if spoken >= 10 * len(series):
                resident = psutil.Process().memory_info().rss / MEGABYTE
                taken = time.perf_counter() - start
                series.append({"audio_seconds": spoken, "seconds": taken, "resident_mb": resident})
            if spoken >= seconds:
                break
    return series


def start_seconds(folder: str) -> dict[str, float]:
    """From loading a bundle to a ready synthesizer, and to its first audio, with a warm model cache."""
    start = time.perf_counter()
    synthesizer = Synthesizer(Bundle.load(folder))
    ready = time.perf_counter() - start
    with synthesizer.stream(TEXTS[0], language=LANGUAGE, seed=1) as stream:
        next(stream)
    return {"ready": ready, "first_audio": time.perf_counter() - start}


def loaded_memory(folder: str, load: bool) -> dict[str, float]:
    """A process's memory in MB with the runtime alone, or with a bundle after two utterances of five seconds.

    `anonymous` is the process's own memory; `file` is pages of mapped files, which the system can drop and read again.
    """
    devices()  # loads OpenVINO and its device plugins
    held = None
    if load:
        held = Synthesizer(Bundle.load(folder))
        # 64 frames: chunks of every size. Memory released after the first utterance is taken again by the second.
        for seed in (1, 2):
            speech = held.speak(TEXTS[0], language=LANGUAGE, seed=seed, max_frames=64)
            assert speech.samples
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    smaps = {words[0].rstrip(":"): int(words[1]) * 1024 / MEGABYTE for words in lines}
    return {
        "resident": smaps["Rss"],
        "proportional": smaps["Pss"],
        "anonymous": smaps["Anonymous"],
        "file": smaps["Rss"] - smaps["Anonymous"],
    }


def memory(folder: str) -> dict[str, Any]:
    """Memory that a loaded bundle adds to a process, compared with the size of its graphs' files."""
    alone_, loaded = alone(loaded_memory, folder, False), alone(loaded_memory, folder, True)
    manifest = Bundle.load(folder).manifest
    graphs = {entry[kind] for entry in manifest["components"].values() for kind in ("xml", "bin")}
    files = sum(manifest["files"][name]["size"] for name in graphs) / MEGABYTE
    added = {kind: loaded[kind] - alone_[kind] for kind in loaded}
    return {"files_mb": files, "runtime_mb": alone_, "added_mb": added, "ratio": added["resident"] / files}


def main(folder: str, seconds: float) -> None:
    manifest = Bundle.load(folder).manifest
    alone(start_seconds, folder)  # fills the model cache
    result = {
        "machine": machine(),
        "start_seconds": [alone(start_seconds, folder) for _ in range(3)],
        "memory": memory(folder),
        "talker_step_by_context": alone(context_cost, folder),
        "streamed": alone(streamed_memory, folder, seconds) if seconds else [],
    }
    write(f"growth-{manifest['variant']}-{manifest['precision']}", result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--seconds", type=float, default=600, help="seconds of streamed speech; 0 skips it")
    given = parser.parse_args(sys.argv[1:])
    main(given.bundle, given.seconds)
