"""Talker and code predictor: the official logits over a prefill and the steps after it."""

import numpy as np
import torch

from tests.official import Official

LOGIT_STEP, CODE_LOGIT_STEP = 3, 4  # of the golden logits


def assert_close(found: torch.Tensor, expected: np.ndarray) -> None:
    """Asserts equality within a ten-thousandth of the values' range."""
    assert abs(found.numpy() - expected).max() <= 1e-4 * np.ptp(expected)


@torch.inference_mode()
def test_talker_logits_over_a_prefill_and_steps(official: Official):
    inputs, prefill = torch.from_numpy(official.golden["talker_inputs"])[None], int(official.golden["talker_prefill"])
    assert prefill >= 40
    talker, past, found = official.model.talker, None, []
    for positions in (torch.arange(prefill), *torch.arange(prefill, inputs.shape[1]).split(1)):
        logits, hidden, past = talker(inputs[:, positions], positions[None], past)
        found.append((logits[0], hidden[0]))
    logits, hidden = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert_close(logits[:, ::LOGIT_STEP], official.golden["talker_logits"])
    assert_close(hidden, official.golden["talker_hidden"])


@torch.inference_mode()
def test_code_predictor_logits(official: Official):
    predictor, codes = official.model.code_predictor, torch.from_numpy(official.parts("codes")[0].astype(np.int64))
    expected, first = official.golden["code_logits"], int(official.golden["talker_prefill"]) - 1
    for frame, frame_logits in enumerate(expected):
        hidden = torch.from_numpy(official.golden["talker_hidden"][first + frame])[None, None]
        embedding = official.model.codec_embedding(codes[frame, :1])[None]
        inputs, start, past = torch.cat((hidden, embedding), dim=1), 0, None
        for group, head in enumerate(predictor.heads):
            states, past = predictor.decode(inputs, start, past)
            assert_close(head(states[0, -1])[::CODE_LOGIT_STEP], frame_logits[group])
            start += inputs.shape[1]
            inputs = predictor.embeddings[group](codes[frame, group + 1])[None, None]


@torch.inference_mode()
def test_a_frame_and_its_text_make_the_next_talker_input(official: Official):
    prompt = official.plan(official.parsed("cases")[0])
    codes, prefill = (
        torch.from_numpy(official.parts("codes")[0].astype(np.int64)),
        int(official.golden["talker_prefill"]),
    )
    for frame, expected in enumerate(official.golden["talker_inputs"][prefill:]):
        row = official.model.embed_frames(codes[frame : frame + 1]) + official.model.embed_text(
            prompt.text_id_after(frame)
        )
        assert_close(row[0, 0], expected)
