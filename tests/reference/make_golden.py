"""Golden values: the official package's results for one checkpoint, as one npz file.

    VENV/bin/python tests/reference/make_golden.py CHECKPOINT GOLDEN.npz [--frames 64]

It runs in the environment that install.sh makes (qwen-tts 0.1.1, transformers 4.57.3), in float32 with eager
attention, and uses none of this project's code. The parity tests read the file; `cases` in it lists the requests to the
official code as JSON. Lists of arrays that differ in length are stored end to end, with their `<name>_lengths`.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
from qwen_tts import Qwen3TTSModel
from qwen_tts.core.models.modeling_qwen3_tts import mel_spectrogram

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]

SPEECH = Path(__file__).parents[1] / "data"
FILES = ("config.json", "model.safetensors", "speech_tokenizer/config.json", "speech_tokenizer/model.safetensors",
         "vocab.json", "merges.txt")  # fmt: skip
TEXT = "Well, nobody knew; the rain had stopped."
LONG_TEXT = (
    "Nobody in the village could say, when it was over, who had first seen the light on the hill: "
    "今天早上我们去河边散步。 Some said the miller's boy had."
)
INSTRUCT = "Speak slowly, with a low and weary voice."
REFERENCE_TEXT = "Had he married a more amiable woman, he might have been made still more respectable than he was."
# About every third value of wide outputs is kept, which covers all of their rows.
LOGIT_STEP, CODE_LOGIT_STEP, WAVE_STEP = 3, 4, 7
TRACED_FRAMES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("golden", type=Path)
    parser.add_argument("--frames", type=int, default=64, help="number of frames in each greedy generation")
    arguments = parser.parse_args()
    tts = Qwen3TTSModel.from_pretrained(
        str(arguments.checkpoint), dtype=torch.float32, attn_implementation="eager", device_map="cpu"
    )
    kind = tts.model.config.tts_model_type
    with torch.inference_mode():
        arrays = reference_voice(tts) if kind == "base" else {}
        cases = {"custom_voice": custom_voice_cases, "voice_design": voice_design_cases, "base": base_cases}[kind](tts)
        arrays |= prompts(tts, cases, arrays)
        arrays |= greedy(tts, [case for case in cases if case["speak"]], arguments.frames, arrays)
        if kind == "custom_voice":
            arrays |= sampling(tts)
        if kind == "base":
            arrays |= speech_decoder(tts) | speech_encoder(tts) | speaker_encoder(tts)
    files = {name: hashlib.sha256((arguments.checkpoint / name).read_bytes()).hexdigest() for name in FILES}
    np.savez_compressed(arguments.golden, checkpoint=as_json(files), **arrays)


# ---- requests ------------------------------------------------------------------------------------------------------


def case(text: str, language: str, text_first: bool, speak: bool = False, **others: Any) -> Case:
    """A request. With `speak` its speech is generated, not only its prompt."""
    return {"text": text, "language": language, "text_first": text_first, "speak": speak, **others}


def languages(tts: Qwen3TTSModel) -> list[str]:
    return ["auto", *tts.model.config.talker_config.codec_language_id]


def another_language(tts: Qwen3TTSModel) -> str:
    return "chinese" if "chinese" in languages(tts) else "auto"


def custom_voice_cases(tts: Qwen3TTSModel) -> list[Case]:
    """The cases to be spoken; then every speaker in every language and both text modes."""
    speakers = tts.model.config.talker_config.spk_id
    dialects = [name for name, dialect in tts.model.config.talker_config.spk_is_dialect.items() if dialect]
    first = next(name for name in speakers if name not in dialects)
    other = next(iter(dialects), [*speakers][-1])
    return [
        case(LONG_TEXT, "English", True, speak=True, speaker=first),
        case(TEXT, "auto", False, speak=True, speaker=other),
        case(TEXT, another_language(tts), True, speak=True, speaker=other, instruct=INSTRUCT),
        case(TEXT, "auto", False, speaker=first.upper(), instruct=INSTRUCT),
        *(case("Oh!", language, text_first, speaker=speaker)
          for speaker, language, text_first in product(speakers, languages(tts), (True, False))),
    ]  # fmt: skip


def voice_design_cases(tts: Qwen3TTSModel) -> list[Case]:
    return [
        case(LONG_TEXT, "English", True, speak=True, instruct=INSTRUCT),
        case(TEXT, "auto", False, speak=True, instruct=INSTRUCT),
        case(TEXT, another_language(tts), True),
        *(case("Oh!", language, text_first, instruct="Calm.")
          for language, text_first in product(languages(tts), (True, False))),
    ]  # fmt: skip


def base_cases(tts: Qwen3TTSModel) -> list[Case]:
    """By x-vector alone, and in context: text longer than, shorter than, and as long as the reference."""
    longer: Case = {"reference_text": REFERENCE_TEXT, "reference_frames": 12}
    shorter: Case = {"reference_text": REFERENCE_TEXT, "reference_frames": 70}
    templates = ((tts._build_assistant_text(TEXT), 8), (tts._build_ref_text(REFERENCE_TEXT), 5))
    tokens = sum(text_ids(tts, text).shape[1] - around for text, around in templates)
    # Where tokens are bytes, they are more than the recording's 76 frames.
    as_long: Case = {"reference_text": REFERENCE_TEXT, "reference_frames": min(tokens, 76)}
    short: Case = {"reference_text": "So?", "reference_frames": 2}
    return [
        case(LONG_TEXT, "English", True, speak=True),
        case(TEXT, "auto", False, speak=True),
        case(TEXT, "English", False, speak=True, **longer),
        case(TEXT, "auto", False, speak=True, **shorter),
        case(TEXT, another_language(tts), True, speak=True, **shorter),
        case(TEXT, "auto", True, **longer),
        case(TEXT, "auto", False, **as_long),
        *(case("Oh!", language, text_first, **reference)
          for language, text_first, reference in product(languages(tts), (True, False), ({}, short))),
    ]  # fmt: skip


def ask(tts: Qwen3TTSModel, case: Case, given: Arrays, **generation: Any) -> torch.Tensor:
    """Generates the codes [frames, groups] of a case with the model, since the wrapper drops some instructions."""
    more: dict[str, Any] = {}
    if "speaker" in case:
        more["speakers"] = [case["speaker"]]
    if "instruct" in case:
        more["instruct_ids"] = [text_ids(tts, tts._build_instruct_text(case["instruct"]))]
    if "x_vector" in given:
        in_context = "reference_text" in case
        more["voice_clone_prompt"] = {
            "ref_code": [
                torch.from_numpy(given["reference_codes"][: case["reference_frames"]]) if in_context else None
            ],
            "ref_spk_embedding": [torch.from_numpy(given["x_vector"])],
            "x_vector_only_mode": [not in_context],
            "icl_mode": [in_context],
        }
        more["ref_ids"] = [text_ids(tts, tts._build_ref_text(case["reference_text"])) if in_context else None]
    return tts.model.generate(
        input_ids=[text_ids(tts, tts._build_assistant_text(case["text"]))],
        languages=[case["language"]],
        non_streaming_mode=case["text_first"],
        **more,
        **generation,
    )[0][0]


def text_ids(tts: Qwen3TTSModel, text: str) -> torch.Tensor:
    return tts._tokenize_texts([text])[0]


# ---- prompts and generation ----------------------------------------------------------------------------------------


def prompts(tts: Qwen3TTSModel, cases: list[Case], given: Arrays) -> Arrays:
    """The talker's inputs for each case: prefill, text alongside the audio, and the padding after it."""
    prefills, trailing = [], []
    for one in cases:
        with stopping_at(tts.model.talker, "generate") as calls:
            ask(tts, one, given)
        prefills.append(calls[0]["inputs_embeds"][0].numpy())
        trailing.append(calls[0]["trailing_text_hidden"][0].numpy())
    pad = calls[0]["tts_pad_embed"][0, 0].numpy()
    return {"cases": as_json(cases), "pad": pad} | joined("prefill", prefills) | joined("trailing", trailing)


def greedy(tts: Qwen3TTSModel, cases: list[Case], frames: int, given: Arrays) -> Arrays:
    """The codes of each case, up to the limit or the end token; for the first, which must reach the limit, also
    the inputs and outputs of talker and code predictor."""
    settings = {"do_sample": False, "subtalker_dosample": False, "max_new_tokens": frames + 1}  # the last is no frame
    with tracing(tts) as trace:
        codes = [ask(tts, cases[0], given, **settings).numpy()]
    codes += [ask(tts, one, given, **settings).numpy() for one in cases[1:]]
    assert len(codes[0]) == frames, "an end token came up; choose another text"
    # The end token, moved to a code of the first case: speech ends there, unless it is too early to end.
    talker, end_id = tts.model.config.talker_config, tts.model.config.talker_config.codec_eos_token_id
    moved = [int(codes[0][0, 0]), int(codes[0][frames // 2, 0])]
    for talker.codec_eos_token_id in moved:
        codes.append(ask(tts, cases[0], given, **settings).numpy())
    talker.codec_eos_token_id = end_id
    assert len(codes[-1]) < frames
    return {"moved_end_ids": np.array(moved)} | joined("codes", [one.astype(np.int16) for one in codes]) | trace


@contextmanager
def tracing(tts: Qwen3TTSModel) -> Iterator[Arrays]:
    """Records the talker's inputs, hidden states and logits [positions, ...], and the first frames' code logits."""
    talker, predictor = tts.model.talker, tts.model.talker.code_predictor
    inputs, hidden, logits, code_logits = [], [], [], []

    def see_talker(_: Any, __: Any, kwargs: Any, output: Any) -> None:
        inputs.append(kwargs["inputs_embeds"][0])
        hidden.append(output.last_hidden_state[0])

    def see_code_logits(_: Any, __: Any, output: torch.Tensor) -> None:
        if len(code_logits) < TRACED_FRAMES * len(predictor.lm_head):
            code_logits.append(output[0, -1, ::CODE_LOGIT_STEP])

    handles = [talker.model.register_forward_hook(see_talker, with_kwargs=True)]
    handles += [
        talker.codec_head.register_forward_hook(lambda _, __, output: logits.append(output[0, :, ::LOGIT_STEP]))
    ]
    handles += [head.register_forward_hook(see_code_logits) for head in predictor.lm_head]
    trace: Arrays = {}
    yield trace
    for handle in handles:
        handle.remove()
    trace["talker_prefill"] = np.array(len(inputs[0]))
    trace |= {f"talker_{name}": torch.cat(parts).numpy()
              for name, parts in (("inputs", inputs), ("hidden", hidden), ("logits", logits))}  # fmt: skip
    trace["code_logits"] = torch.stack(code_logits).unflatten(0, (-1, len(predictor.lm_head))).numpy()


# ---- sampling ------------------------------------------------------------------------------------------------------


def sampling(tts: Qwen3TTSModel) -> Arrays:
    """Probabilities from the official processors for the same logits, over a grid of parameters."""
    rng = np.random.default_rng(0)
    talker = tts.model.config.talker_config
    logits = torch.from_numpy(rng.standard_normal((1, talker.vocab_size), dtype=np.float32) * 3)
    logits[0, talker.codec_eos_token_id] = logits.max() + 1  # the end token would win if it were allowed
    history = torch.from_numpy(rng.integers(0, 2048, (1, 30)))
    history[0, :10] = logits[0, :2048].topk(10).indices  # the penalty must take effect
    grid = [
        {"history": count, "repetition_penalty": penalty, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        for count, penalty in ((30, 1.0), (0, 1.05), (1, 1.05), (30, 1.05), (30, 1.3))
        for temperature, top_k, top_p in product((0.6, 0.9, 1.4), (0, 1, 50), (1.0, 0.8, 0.3))
    ]
    probabilities = []
    for point in grid:
        settings = {key: value for key, value in point.items() if key != "history"}
        with stopping_at(tts.model.talker, "_get_logits_processor", run=True) as processors:
            ask(tts, case(TEXT, "auto", True, speaker=next(iter(talker.spk_id))), {}, **settings)
        scores = processors[0](history[:, : point["history"]], logits.clone())
        probabilities.append(torch.softmax(scores[0], dim=-1).numpy())
    return {
        "sampling_grid": as_json(grid),
        "sampling_logits": logits[0].numpy(),
        "sampling_history": history[0].numpy(),
        "sampling_probabilities": np.stack(probabilities),
    } | code_sampling(tts, logits[:, : talker.code_predictor_config.vocab_size])


def code_sampling(tts: Qwen3TTSModel, logits: torch.Tensor) -> Arrays:
    """The same for the code predictor, with the `subtalker_*` settings."""
    predictor = tts.model.talker.code_predictor
    grid = [
        {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        for temperature, top_k, top_p in product((0.6, 0.9, 1.4), (0, 1, 50), (1.0, 0.8, 0.3))
    ]
    probabilities = []
    for point in grid:
        with stopping_at(predictor, "_get_logits_processor", run=True) as processors:
            inputs = torch.zeros(1, 2, tts.model.config.talker_config.hidden_size)
            predictor.generate(inputs_embeds=inputs, max_new_tokens=15, do_sample=True, **point)
        scores = processors[0](torch.zeros(1, 0, dtype=torch.int64), logits.clone())
        probabilities.append(torch.softmax(scores[0], dim=-1).numpy())
    return {"code_sampling_grid": as_json(grid), "code_sampling_probabilities": np.stack(probabilities)}


# ---- speech --------------------------------------------------------------------------------------------------------


def reference_voice(tts: Qwen3TTSModel) -> Arrays:
    """The voice cloned in the base model's cases."""
    item = tts.create_voice_clone_prompt(str(SPEECH / "speech-24khz.flac"), ref_text=REFERENCE_TEXT)[0]
    return {"x_vector": item.ref_spk_embedding.numpy(), "reference_codes": item.ref_code.numpy()}


def speech_decoder(tts: Qwen3TTSModel) -> Arrays:
    """A single pass over 350 frames, and chunked decoding. Checks that a shorter pass gives a prefix."""
    decoder = tts.model.speech_tokenizer.model.decoder
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 2048, (1, 16, 350)))
    whole = decoder(codes)[0, 0]
    for frames in (1, 25, 73, 300):
        piece = decoder(codes[..., :frames])[0, 0]
        noise = (piece - whole[: len(piece)]).pow(2).sum() / piece.pow(2).sum()
        assert noise < 1e-11, f"{frames} frames differ from a prefix: {noise}"
    chunked = decoder.chunked_decode(codes)[0, 0]
    return {
        "decoder_codes": codes[0].numpy().astype(np.int16),
        "decoder_samples": whole[::WAVE_STEP].numpy(),
        "decoder_chunked": chunked[::WAVE_STEP][len(whole) * 300 // 350 // WAVE_STEP :].numpy(),
    }


def speech_encoder(tts: Qwen3TTSModel) -> Arrays:
    """Codes of the recordings: whole files as they are, and beginnings of the 24 kHz one."""
    tokenizer = tts.model.speech_tokenizer
    asked: list[Case] = [{"file": path.name} for path in sorted(SPEECH.glob("*.flac"))]
    asked += [
        {"file": "speech-24khz.flac", "samples": samples} for samples in (48_000, 48_001, 49_919, 14_000, 1_920, 500)
    ]
    codes = []
    for one in asked:
        path = SPEECH / one["file"]
        audio, rate = librosa.load(path, sr=None)
        found = tokenizer.encode(audio[: one["samples"]], sr=rate) if "samples" in one else tokenizer.encode(str(path))
        codes.append(found.audio_codes[0].numpy().astype(np.int16))
    return {"encoder_cases": as_json(asked)} | joined("encoder_codes", codes)


def speaker_encoder(tts: Qwen3TTSModel) -> Arrays:
    """X-vectors of the recordings, mel features of one, and the mel filters."""
    files = sorted(path.name for path in SPEECH.glob("*.flac"))
    clips = [str(SPEECH / name) for name in files]
    items = [tts.create_voice_clone_prompt(clip, x_vector_only_mode=True)[0] for clip in clips]
    audio, rate = librosa.load(SPEECH / "speech-24khz.flac", sr=None)
    mel = mel_spectrogram(torch.from_numpy(audio[None, :48_000]), 1024, 128, rate, 256, 1024, 0, 12000)
    return {
        "speaker_files": as_json(files),
        "speaker_vectors": torch.stack([item.ref_spk_embedding for item in items]).numpy(),
        "mel_features": mel[0].T.numpy(),
        "mel_filters": librosa.filters.mel(sr=rate, n_fft=1024, n_mels=128, fmin=0, fmax=12000),
    }


# ---- tools ---------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """Ends a generation as soon as the wanted values are recorded."""


@contextmanager
def stopping_at(owner: Any, name: str, run: bool = False) -> Iterator[list[Any]]:
    """Stops the block when it calls a method; collects the call's keywords, or with `run` its result."""
    original: Callable = getattr(owner, name)
    seen: list[Any] = []

    def method(*args: Any, **kwargs: Any) -> None:
        seen.append(original(*args, **kwargs) if run else kwargs)
        raise Stop

    setattr(owner, name, method)
    try:
        yield seen
    except Stop:
        pass
    finally:
        delattr(owner, name)  # restores the method of the class


def joined(name: str, arrays: list[np.ndarray]) -> Arrays:
    return {name: np.concatenate(arrays), f"{name}_lengths": np.array([len(array) for array in arrays])}


def as_json(data: Any) -> np.ndarray:
    return np.array(json.dumps(data, ensure_ascii=False))


if __name__ == "__main__":
    main()
