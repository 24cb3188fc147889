"""What a loaded bundle keeps in memory and in the model cache."""

import sys
from pathlib import Path

import numpy as np
import pytest

from qwen3_tts_ov import Bundle, Synthesizer


def resident(folder: Path) -> dict[str, int]:
    """The resident kilobytes of each mapped file in a folder."""
    found: dict[str, int] = {}
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if "-" in words[0]:
            name = words[5] if len(words) == 6 else ""
        elif words[0] == "Rss:" and name.startswith(str(folder)):
            found[name] = found.get(name, 0) + int(words[1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="memory is released only on Linux")
def test_weights_that_a_graph_has_copied_do_not_stay_mapped_in_memory(artifact, tmp_path):
    bundle = Bundle.load(artifact("bundle"))

    def say(loaded: Synthesizer) -> np.ndarray:
        return loaded.speak("One.", seed=1, max_frames=1).waveform

    loaded = Synthesizer(bundle, cache_dir=tmp_path)
    before = resident(bundle.folder) | resident(tmp_path)
    first = say(loaded)
    after = resident(bundle.folder) | resident(tmp_path)
    assert {Path(name).name for name in after} >= {"talker.bin", "code_predictor-1.bin", "text_embedding.bin"}
    assert sum(after.values()) == 0 < sum(before.values())
    np.testing.assert_array_equal(say(loaded), first)  # what it reads again is still mapped


@pytest.mark.parametrize(("precision", "cached"), [("fp16", 2), ("int8", 3)])
def test_the_model_cache_has_no_tables_and_a_talker_only_if_it_is_restored_unchanged(
    artifact, tmp_path, precision, cached
):
    """A talker in 16 bits would be restored in 32."""
    Synthesizer(Bundle.load(artifact("bundle", precision=precision)), cache_dir=tmp_path)
    assert len(list(tmp_path.rglob("*.blob"))) == cached
