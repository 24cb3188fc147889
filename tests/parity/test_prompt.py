"""Prompts: the talker receives the same embeddings as in the official package, in every mode, language and voice."""

import torch

from tests.official import Official


def test_the_prefill_is_the_official_one(official: Official):
    for case, expected in zip(official.parsed("cases"), official.parts("prefill"), strict=True):
        with torch.inference_mode():
            found = official.model.embed_prompt(official.plan(case), **official.voice(case))[0].numpy()
        assert found.shape == expected.shape, case
        assert abs(found - expected).max() <= 1e-5 * abs(expected).max(), case


def test_the_text_beside_the_audio_is_the_official_one(official: Official):
    for case, expected in zip(official.parsed("cases"), official.parts("trailing"), strict=True):
        prompt = official.plan(case)
        # The official package gives rows, then endless padding; no rows and a single row of padding are equivalent.
        for frame in range(max(len(expected), len(prompt.trailing_text_ids)) + 2):
            row = expected[frame] if frame < len(expected) else official.golden["pad"]
            with torch.inference_mode():
                found = official.model.embed_text(prompt.text_id_after(frame))[0, 0].numpy()
            assert abs(found - row).max() <= 1e-5 * abs(row).max(), (case, frame)
