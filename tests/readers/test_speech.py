"""Other runtimes' bundles through whole utterances, driven as those programs do: the codes are the native runtime's."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from pipeline.graphs.teacher_forcing import EXACT
from qwen3_tts_ov import Bundle, Synthesizer
from tests.official import snr
from tests.readers.genai import ForNpu, GenAI
from tests.readers.host import Reader
from tests.readers.native import ASKED, FRAMES, native
from tests.readers.openarc import OpenArc

LAYOUTS: dict[str, list[type[Reader]]] = {"openarc": [OpenArc], "genai": [GenAI, ForNpu]}
VARIANTS = {"tiny-base": "base", "tiny-custom-voice": "custom_voice", "tiny-voice-design": "voice_design"}
QUICK = [("tiny-base", "int8", "x-vector"), ("tiny-base", "int8", "in context")]  # of graphs that other tests build
CASES = [
    pytest.param(
        variant, precision, layout, name, id=f"{variant}-{precision}-{layout}-{name}",
        marks=() if (variant, precision, name) in QUICK else pytest.mark.prove,
    )
    for variant, kind in VARIANTS.items()
    for precision in ("fp16", "int8")
    for layout in LAYOUTS
    for name in ASKED[kind]
]  # fmt: skip


@pytest.fixture(scope="module")
def synthesizer(artifact, model_cache) -> Callable[[str, str], Synthesizer]:
    @cache
    def get(variant: str, precision: str) -> Synthesizer:
        bundle = Bundle.load(artifact("bundle", variant, precision))
        return Synthesizer(bundle, properties={"default": EXACT}, cache_dir=model_cache)

    return get


@pytest.fixture(scope="module")
def readers(bundle_of) -> Callable[[str, str, str], list[Reader]]:
    @cache
    def get(layout: str, variant: str, precision: str) -> list[Reader]:
        return [reader(bundle_of(layout, variant, precision), EXACT) for reader in LAYOUTS[layout]]

    return get


@pytest.mark.parametrize(("variant", "precision", "layout", "name"), CASES)
def test_a_program_speaks_the_native_runtimes_codes(synthesizer, readers, variant, precision, layout, name):
    asked = ASKED[VARIANTS[variant]][name]
    codes, waveform = native(synthesizer(variant, precision), asked, by_openarc=layout == "openarc")
    assert codes.shape == (FRAMES, 16), "without an end token, all frames are compared"
    for program in readers(layout, variant, precision):
        np.testing.assert_array_equal(program.speak(asked, FRAMES), codes)
        if asked.reference_text is None:  # in context the native decoder continues from the recording
            assert snr(waveform, program.decode(codes)) > 60
