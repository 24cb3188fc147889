"""Side: a plain read of as many bytes as the weights of a frame in a bundle, on as many threads.

python -m benchmarks.bandwidth BUNDLE
"""

from __future__ import annotations

import os
import sys
from typing import Any

from benchmarks.side import Figures, Speak, serve
from qwen3_tts_ov import Bundle
from qwen3_tts_ov.app.bench import READ, WeightReader, weight_reads

REPEATS = 8  # per turn; their mean is reported, as the sides' times per frame are means


def load(folder: str) -> tuple[Speak, dict[str, Any]]:
    bundle, threads = Bundle.load(folder), len(os.sched_getaffinity(0))
    xml = {name: bundle.path(bundle.manifest["components"][name]["xml"]) for name in READ}
    readers = {name: WeightReader(weight_reads(path), threads) for name, path in xml.items()}

    def speak(text: str, seed: int, frames: int, wav: str) -> Figures:
        seconds = {name: sum(reader.seconds() for _ in range(REPEATS)) / REPEATS for name, reader in readers.items()}
        size = sum(reader.size for reader in readers.values())
        return {f"{name}_ms_a_frame": 1000 * value for name, value in seconds.items()} | {
            "gigabytes_a_second": size / 1e9 / sum(seconds.values())
        }

    return speak, {"threads": threads, "weight_bytes_a_frame": {name: reader.size for name, reader in readers.items()}}


if __name__ == "__main__":
    serve(lambda: load(sys.argv[1]))
