"""Side: the official package in PyTorch, in the environment that tests/reference/install.sh makes.

VENV/bin/python -m benchmarks.official CHECKPOINT float32|bfloat16
"""

from __future__ import annotations

import functools
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.side import LANGUAGE, Figures, Speak, serve


def load(checkpoint: str, dtype: str) -> tuple[Speak, dict[str, Any]]:
    """Loads with PyTorch's attention (`sdpa`), the faster one on a CPU."""
    # Imported here, where its output cannot mix with the answers.
    import soundfile
    import torch
    from qwen_tts import Qwen3TTSModel

    tts = Qwen3TTSModel.from_pretrained(checkpoint, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    seconds: defaultdict[str, float] = defaultdict(float)
    talker, codec = tts.model.talker, tts.model.speech_tokenizer
    codec.decode = timed(codec.decode, seconds, "speech_decoder")
    talker.code_predictor.generate = timed(talker.code_predictor.generate, seconds, "code_predictor")
    talker.generate = timed(talker.generate, seconds, "generate")
    time_prefill(talker, seconds)
    speaker = next(iter(tts.model.config.talker_config.spk_id))

    def speak(text: str, seed: int, frames: int, wav: str) -> Figures:
        seconds.clear()
        torch.manual_seed(seed)
        start = time.perf_counter()
        # The last token is not a frame.
        (waveform,), rate = tts.generate_custom_voice(text, speaker, language=LANGUAGE, max_new_tokens=frames + 1)
        soundfile.write(wav, waveform, rate, "PCM_16")
        total, spoken = time.perf_counter() - start, round(len(waveform) / rate * 12.5)
        step = seconds["generate"] - seconds["prefill"] - seconds["code_predictor"]  # including sampling
        return {
            "seconds": total,
            "frames": spoken,
            "prefill_ms": 1000 * seconds["prefill"],
            "talker_ms_a_frame": 1000 * step / spoken,
            "code_predictor_ms_a_frame": 1000 * seconds["code_predictor"] / spoken,
            "speech_decoder_ms_a_frame": 1000 * seconds["speech_decoder"] / spoken,
        }

    return speak, {"precision": dtype, "torch": torch.__version__, "threads": torch.get_num_threads()}


def timed(function: Callable[..., Any], seconds: defaultdict[str, float], name: str) -> Callable[..., Any]:
    """Wraps the function to add its time to `seconds`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[name] += time.perf_counter() - start
        return result

    return call


def time_prefill(talker: Any, seconds: defaultdict[str, float]) -> None:
    """Adds the time of calls with more than one position to `seconds`."""

    def before(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        embeds = kwargs.get("inputs_embeds")
        if embeds is not None and embeds.shape[1] > 1:
            seconds["started"] = time.perf_counter()

    def after(*_: Any) -> None:
        if started := seconds.pop("started", None):
            seconds["prefill"] += time.perf_counter() - started

    talker.register_forward_pre_hook(before, with_kwargs=True)
    talker.register_forward_hook(after)


if __name__ == "__main__":
    serve(lambda: load(*sys.argv[1:]))
