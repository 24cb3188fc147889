"""The runtime and the PyTorch reference give the same greedy codes, for every kind of voice and both text modes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model_src.checkpoint import Checkpoint
from model_src.generate import SpeechModel
from pipeline.rollout import exported
from qwen3_tts_ov import Sampling, Synthesizer, VoicePrompt, prompt

TEXT, LANGUAGE, INSTRUCT = "It is the same voice, whoever runs it.", "english", "Speak slowly."
FRAMES = 24
EXACT = {"default": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}}
GREEDY = {"do_sample": False, "subtalker_dosample": False}


@pytest.fixture(scope="module")
def both(artifact: Callable[..., Path], model_cache: Path) -> Callable[[str], tuple[Synthesizer, SpeechModel]]:
    """`both("tiny-base")`: the exported graphs at full arithmetic precision, and the networks of their checkpoint."""
    made: dict[str, tuple[Synthesizer, SpeechModel]] = {}

    def get(variant: str) -> tuple[Synthesizer, SpeechModel]:
        if variant not in made:
            checkpoint = artifact("download", variant)
            model = exported(variant, checkpoint, artifact("export", variant))
            made[variant] = (
                Synthesizer(model, properties=EXACT, cache_dir=model_cache),
                SpeechModel(Checkpoint(checkpoint), model.config),
            )
        return made[variant]

    return get


def reference_codes(
    synthesizer: Synthesizer, model: SpeechModel, plan: prompt.Prompt, voice: VoicePrompt | None = None
) -> np.ndarray:
    """The networks' greedy codes [frames, groups]."""
    generation = synthesizer.model.generation | GREEDY
    sampling = Sampling.talker(generation), Sampling.code_predictor(generation)
    speaker = None if voice is None else torch.from_numpy(voice.x_vector)
    reference = None if voice is None or voice.codes is None else torch.from_numpy(voice.codes)
    return model.generate(plan, *sampling, FRAMES, speaker=speaker, reference=reference)


@pytest.mark.parametrize("text_first", [True, False])
def test_custom_voice(both, text_first):
    synthesizer, model = both("tiny-custom-voice")
    speaker = synthesizer.model.speakers[-1]
    plan = prompt.custom_voice(model.config, synthesizer.model.tokenize, TEXT, speaker, LANGUAGE, None, text_first)
    speech = synthesizer.speak(TEXT, speaker, None, LANGUAGE, text_first=text_first, max_frames=FRAMES, **GREEDY)
    np.testing.assert_array_equal(speech.codes, reference_codes(synthesizer, model, plan))


@pytest.mark.parametrize("text_first", [True, False])
def test_voice_design(both, text_first):
    synthesizer, model = both("tiny-voice-design")
    plan = prompt.voice_design(model.config, synthesizer.model.tokenize, TEXT, INSTRUCT, LANGUAGE, text_first)
    speech = synthesizer.speak(TEXT, None, INSTRUCT, LANGUAGE, text_first=text_first, max_frames=FRAMES, **GREEDY)
    np.testing.assert_array_equal(speech.codes, reference_codes(synthesizer, model, plan))


@pytest.mark.parametrize("text_first", [True, False])
@pytest.mark.parametrize("reference_text", [None, "This is what the recording says."])
def test_clone(both, text_first, reference_text):
    synthesizer, model = both("tiny-base")
    clock = np.arange(48_000) / 24_000
    tone = (0.3 * np.sin(2 * np.pi * 180 * clock) * np.sin(2 * np.pi * 2 * clock) ** 2).astype(np.float32)
    voice = synthesizer.voice_prompt((tone, 24_000), reference_text)
    tokenize = synthesizer.model.tokenize
    if reference_text is None:
        plan = prompt.clone_x_vector(model.config, tokenize, TEXT, LANGUAGE, text_first)
    else:
        plan = prompt.clone_icl(model.config, tokenize, TEXT, reference_text, len(voice.codes), LANGUAGE, text_first)
    speech = synthesizer.speak(TEXT, voice, None, LANGUAGE, text_first=text_first, max_frames=FRAMES, **GREEDY)
    np.testing.assert_array_equal(speech.codes, reference_codes(synthesizer, model, plan, voice))
