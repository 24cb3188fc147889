"""greedy_codes: prints, as JSON, hashes of what bundles speak greedily. Run by openvino_releases in its environments.

python greedy_codes.py CACHE BUNDLE ...
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from qwen3_tts_ov import Bundle, Synthesizer

TEXT = "Good morning, this is how every release must say it."
EXACT = {"default": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}}


def codes(folder: Path, cache: str) -> list[str]:
    """Hashes of the codes of a recording, if the bundle clones one, and of the speech: compiled, and from the cache."""
    # Not Bundle.load, which refuses the releases that are to be tried.
    bundle = Bundle(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    found = []
    for _ in range(2):
        synthesizer = Synthesizer(bundle, properties=EXACT, cache_dir=cache)
        voice: dict[str, object] = {"instruct": "A calm voice."} if bundle.kind == "voice_design" else {}
        if bundle.kind == "base":
            clock = np.arange(48_000) / 24_000
            recording = (0.3 * np.sin(2 * np.pi * 220 * clock * (1 + 0.1 * clock))).astype(np.float32)
            voice = {"voice": synthesizer.voice_prompt((recording, 24_000), "What I say here.")}
            found.append(digest(voice["voice"].codes))
        greedy = {"do_sample": False, "subtalker_dosample": False}
        found.append(digest(synthesizer.speak(TEXT, seed=0, max_frames=24, **greedy, **voice).codes))
    return found


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.int64).tobytes()).hexdigest()[:12]


if __name__ == "__main__":
    cache, *folders = sys.argv[1:]
    print(json.dumps({"/".join(Path(name).parts[-3:-1]): codes(Path(name), cache) for name in folders}))
