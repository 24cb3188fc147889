"""Side: this project's runtime with a bundle, with the recommended settings or with the speech decoder in f32.

python -m benchmarks.ours BUNDLE [f32]
"""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.side import LANGUAGE, Figures, Speak, serve
from qwen3_tts_ov import Bundle, Synthesizer
from qwen3_tts_ov.app.bench import READ, component_reader, ms_a_frame


def load(folder: str, decoder: str | None = None) -> tuple[Speak, dict[str, Any]]:
    bundle = Bundle.load(folder)
    start = time.perf_counter()
    properties = {"speech_decoder": {"INFERENCE_PRECISION_HINT": decoder}} if decoder else {}
    synthesizer = Synthesizer(bundle, properties=properties)
    loaded = time.perf_counter() - start

    def speak(text: str, seed: int, frames: int, wav: str) -> Figures:
        start = time.perf_counter()
        speech = synthesizer.speak(text, language=LANGUAGE, seed=seed, max_frames=frames)
        speech.save(wav)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        with synthesizer.stream(text, language=LANGUAGE, seed=seed, max_frames=frames) as stream:
            next(stream)
        first_audio = time.perf_counter() - start
        spoken = {"seconds": seconds, "frames": len(speech.codes), "first_audio_ms": 1000 * first_audio}
        return spoken | ms_a_frame(speech)

    readers = {name: component_reader(synthesizer, name) for name in READ}
    return speak, {
        "bundle": bundle.manifest["bundle_id"],
        "variant": bundle.manifest["variant"],
        "precision": bundle.manifest["precision"],
        "load_seconds": loaded,
        "weight_bytes_a_frame": {name: reader.size for name, reader in readers.items()},
        "threads": {name: reader.threads for name, reader in readers.items()},
    }


if __name__ == "__main__":
    serve(lambda: load(*sys.argv[1:]))
