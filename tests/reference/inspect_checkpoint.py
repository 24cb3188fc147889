"""The official package's view of a checkpoint, as JSON on the last line of stdout.

VENV/bin/python tests/reference/inspect_checkpoint.py shapes FOLDER
VENV/bin/python tests/reference/inspect_checkpoint.py speak FOLDER MAX_NEW_TOKENS

`shapes` builds the modules from the two config.json files and lists their state; `speak` loads the checkpoint and
speaks greedily in every mode of its kind.
"""

import json
import sys
from pathlib import Path

import librosa
import numpy as np
import torch
from qwen_tts import Qwen3TTSModel
from qwen_tts.core.models.configuration_qwen3_tts import Qwen3TTSConfig
from qwen_tts.core.models.modeling_qwen3_tts import Qwen3TTSForConditionalGeneration
from qwen_tts.core.tokenizer_12hz.configuration_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Config
from qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Model

SPEECH = Path(__file__).parents[1] / "data" / "speech-24khz.flac"
TEXT = "Hello there, nobody knew."


def shapes(folder: Path) -> dict:
    classes = {
        "model": (Qwen3TTSForConditionalGeneration, Qwen3TTSConfig, folder / "config.json"),
        "speech_tokenizer": (
            Qwen3TTSTokenizerV2Model,
            Qwen3TTSTokenizerV2Config,
            folder / "speech_tokenizer" / "config.json",
        ),
    }
    listed = {}
    with torch.device("meta"):
        for name, (model, config, path) in classes.items():
            state = model(config(**json.loads(path.read_text()))).state_dict()
            listed[name] = {tensor: list(value.shape) for tensor, value in state.items()}
    return listed


def speak(folder: Path, max_new_tokens: int) -> dict:
    tts = Qwen3TTSModel.from_pretrained(str(folder), dtype=torch.float32, attn_implementation="eager")
    codec, decoded = tts.model.speech_tokenizer, []
    decode = codec.decode

    def recorded(batch: list[dict]) -> tuple:
        decoded.extend(item["audio_codes"].tolist() for item in batch)
        return decode(batch)

    codec.decode = recorded
    greedy = {"do_sample": False, "subtalker_dosample": False, "max_new_tokens": max_new_tokens}
    result: dict = {}
    match tts.model.tts_model_type:
        case "custom_voice":
            made = [
                tts.generate_custom_voice(TEXT, speaker, language="Auto", **greedy) for speaker in ("Vivian", "Eric")
            ]
        case "voice_design":
            made = [tts.generate_voice_design(TEXT, instruct="A calm voice.", language="English", **greedy)]
        case _:
            audio = librosa.load(SPEECH, sr=24000)
            made = [
                tts.generate_voice_clone(
                    TEXT,
                    language="English",
                    ref_audio=audio,
                    ref_text="Some words.",
                    x_vector_only_mode=plain,
                    **greedy,
                )
                for plain in (True, False)
            ]
            prompt = tts.create_voice_clone_prompt(ref_audio=audio, ref_text="Some words.")[0]
            result["reference_codes"] = prompt.ref_code.tolist()
    result["rate"] = made[0][1]
    result["utterances"] = [
        {
            "codes": codes,
            "samples": len(waves[0]),
            "deviation": float(np.std(waves[0])),
            "peak": float(np.abs(waves[0]).max()),
        }
        for codes, (waves, _) in zip(decoded, made, strict=True)
    ]
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, folder, *limit = sys.argv[1:]
    print(json.dumps(shapes(Path(folder)) if command == "shapes" else speak(Path(folder), int(limit[0]))))
