"""Greedy generation: the same codes as the official package, in every mode."""

import copy

from qwen3_tts_ov.sampling import Sampling
from tests.official import Official

GREEDY = Sampling(do_sample=False, repetition_penalty=1.05)


def test_every_mode_gives_the_official_codes(official: Official):
    spoken = [case for case in official.parsed("cases") if case["speak"]]
    limit = len(official.parts("codes")[0])
    for case, expected in zip(spoken, official.parts("codes"), strict=False):
        found = official.model.generate(official.plan(case), GREEDY, GREEDY, limit, **official.voice(case))
        assert found.tolist() == expected.tolist(), case


def test_the_end_token_ends_speech_but_not_its_first_frames(official: Official):
    case, limit = official.parsed("cases")[0], len(official.parts("codes")[0])
    for end_id, expected in zip(official.golden["moved_end_ids"], official.parts("codes")[-2:], strict=True):
        model = copy.copy(official.model)
        talker = official.config["talker_config"] | {"codec_eos_token_id": int(end_id)}
        model.config = official.config | {"talker_config": talker}
        found = model.generate(official.plan(case), GREEDY, GREEDY, limit, **official.voice(case))
        assert found.tolist() == expected.tolist()
