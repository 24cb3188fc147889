"""The graphs together: they give the networks' codes, in two infer calls per frame."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from qwen3_tts_ov import Bundle, Synthesizer, VoicePrompt
from qwen3_tts_ov.prompt import Prompt
from qwen3_tts_ov.sampling import Sampling, TalkerSampler
from qwen3_tts_ov.session import Session
from tests.exported import request
from tests.official import LIVE, VARIANTS, Official

GREEDY = Sampling(do_sample=False, repetition_penalty=1.05)


def say(session: Session, config: dict, plan: Prompt, voice: VoicePrompt | None, frames: int) -> np.ndarray:
    """Greedy codes [frames, groups] of the graphs, up to the end token."""
    sampler = TalkerSampler(config, GREEDY, np.random.default_rng(0))
    greedy = {
        "noise": np.ones((1, 15, 2048), np.float32),
        "temperature": np.ones(1, np.float32),
        "top_k": np.array([50]),
        "top_p": np.ones(1, np.float32),
    }
    session.new_utterance()
    prefill, text = session.embed(plan, voice)
    logits, hidden = session.talk(prefill)
    spoken = []
    while len(spoken) < frames and (first := sampler(logits)) != sampler.end_id:
        codes, embedding = session.predict_frame(hidden, first, greedy)
        logits, hidden = session.talk(embedding + text[min(len(spoken), len(text) - 1)])
        spoken.append(codes)
    return np.array(spoken)


def voice_of(official: Official, case: dict) -> VoicePrompt | None:
    """The voice that a case clones; None for a voice by name or description."""
    voice = {name: tensor.numpy() for name, tensor in official.voice(case).items()}
    return VoicePrompt(voice["speaker"], voice.get("reference"), case.get("reference_text")) if voice else None


@pytest.mark.parametrize("official", [name for name in VARIANTS if name.startswith("tiny-")], indirect=True)
@pytest.mark.skipif(LIVE is not None, reason="the graphs are those of the tiny checkpoints")
def test_greedy_codes_equal_the_networks_over_64_frames_in_every_mode(official: Official, artifact):
    ir: Path = artifact("export", official.folder.parent.name)
    names = [path.stem for path in ir.glob("*.xml") if not path.stem.endswith("encoder")]
    session = Session({name: request(ir / f"{name}.xml") for name in names})
    # The official package gives these codes, and so does model_src (tests/parity/test_greedy.py).
    spoken = [case for case in official.parsed("cases") if case["speak"]]
    for case, expected in zip(spoken, official.parts("codes"), strict=False):
        found = say(session, official.config, official.plan(case), voice_of(official, case), len(expected))
        assert len(expected) == 64
        np.testing.assert_array_equal(found, expected, err_msg=str(case))


# Components by the name of their first input; both embedding tables of a custom voice look up token ids.
FIRST_INPUTS = {
    "inputs_embeds": "talker",
    "talker_hidden": "code_predictor",
    "codes": "speech_decoder",
    "token_ids": "embedding",
}


@pytest.fixture
def infer_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts every inference from now on, by component."""
    count: Counter[str] = Counter()

    def counting(infer: Callable[..., Any]) -> Callable[..., Any]:
        def counted(request: ov.InferRequest, *args: Any, **kwargs: Any) -> Any:
            count[FIRST_INPUTS[request.model_inputs[0].any_name]] += 1
            return infer(request, *args, **kwargs)

        return counted

    for name in ("infer", "start_async"):
        monkeypatch.setattr(ov.InferRequest, name, counting(getattr(ov.InferRequest, name)))
    return count


@pytest.fixture(scope="module")
def synthesizer(artifact, model_cache) -> Synthesizer:
    return Synthesizer(Bundle.load(artifact("bundle")), cache_dir=model_cache)


@pytest.mark.parametrize("text_first", [True, False])
@pytest.mark.parametrize("frames", [5, 30])
def test_a_frame_takes_two_infer_calls(synthesizer, infer_calls, text_first, frames):
    with synthesizer.stream(
        "The quick brown fox jumps over the lazy dog.",
        "aiden",
        seed=1,
        text_first=text_first,
        max_frames=frames,
    ) as stream:
        chunks = len(list(stream))
    assert len(stream.outcome.codes) == frames, "choose a different seed; this one ends early"
    # The talker's prefill gives the first frame; its steps give the others.
    assert infer_calls == {"talker": frames, "code_predictor": frames, "speech_decoder": chunks, "embedding": 2}
    assert chunks < frames
