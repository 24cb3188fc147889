"""Side: one call per step, as OpenArc's engine speaks from a bundle in its layout.

    python -m benchmarks.stepwise BUNDLE

A frame takes 32 infer calls: the talker, its table, and fifteen times the code predictor and its table. Positions and
sampling are computed in numpy, the audio is decoded in one call at the end, and the compile properties are OpenArc's.
Prompt and sampling rules are this project's, which are the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.side import LANGUAGE, Figures, Speak, serve
from qwen3_tts_ov import audio, prompt
from qwen3_tts_ov.sampling import Sampling, TalkerSampler, exponential, warp

PROPERTIES = {"PERFORMANCE_HINT": "LATENCY"}
GRAPHS = ("text_model", "codec_embedding", "cp_codec_embedding", "talker", "code_predictor", "speech_decoder")
_PART_OF = {"codec_embedding": "talker", "cp_codec_embedding": "code_predictor"}
Arrays = Mapping[str, NDArray[Any]]


class Stepwise:
    """The graphs, and the seconds spent in them and in the sampling between them, by part."""

    def __init__(self, folder: Path, properties: Mapping[str, Any] = PROPERTIES) -> None:
        core = ov.Core()
        self.config = json.loads((folder / "config.json").read_text())
        self.generation = json.loads((folder / "generation_config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.requests = {}
        for name in GRAPHS:
            where = folder / "speech_tokenizer" if name == "speech_decoder" else folder
            self.requests[name] = core.compile_model(where / f"{name}.xml", "CPU", PROPERTIES).create_infer_request()
        talker = self.config["talker_config"]
        self.groups = talker["num_code_groups"]
        self.talker_positions = rotary(8192, talker["head_dim"], talker["rope_theta"])
        predictor = talker["code_predictor_config"]
        self.code_positions = rotary(self.groups, predictor["head_dim"], predictor["rope_theta"])
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def run(self, name: str, counted_as: str = "", **inputs: Any) -> Arrays:
        start = time.perf_counter()
        result: Arrays = self.requests[name].infer(inputs, share_inputs=True, share_outputs=True)
        self.seconds[counted_as or _PART_OF.get(name, name)] += time.perf_counter() - start
        return result

    def rows(self, name: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of a table [ids, width], zero where an id is negative."""
        (output,) = self.run(name, token_ids=np.maximum(ids, 0)[None]).values()
        return output[0] * (ids >= 0)[:, None]

    def talk(self, embeds: NDArray[np.float32], position: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [vocabulary] and hidden [1, 1, width] of the last of the positions fed."""
        cos, sin = (table[:, :, position : position + embeds.shape[1]] for table in self.talker_positions)
        counted_as = "talker" if position else "prefill"
        result = self.run("talker", counted_as, inputs_embeds=embeds, cos=cos, sin=sin, beam_idx=np.zeros(1, np.int32))
        return result["logits"][0, -1], result["hidden"][:, -1:].copy()

    def predict_frame(
        self, hidden: NDArray[np.float32], first_code: int, sampling: Sampling, rng: np.random.Generator
    ) -> tuple[list[int], NDArray[np.float32]]:
        """A frame's codes and the sum of their embeddings [1, 1, width]."""
        summed = self.run("codec_embedding", token_ids=np.array([[first_code]]))["embeddings"].copy()
        codes, embeds, position = [first_code], np.concatenate([hidden, summed], axis=1), 0
        self.requests["code_predictor"].reset_state()
        for step in range(self.groups - 1):
            cos, sin = (table[:, :, position : position + embeds.shape[1]] for table in self.code_positions)
            where: dict[str, Any] = {
                "cos": cos,
                "sin": sin,
                "generation_steps": np.array(step),
                "beam_idx": np.zeros(1, np.int32),
            }
            logits = self.run("code_predictor", inputs_embeds=embeds, **where)["logits"][0, -1]
            start = time.perf_counter()
            scores = warp(logits, sampling)
            noise = np.log(exponential(rng, scores.shape)) if sampling.do_sample else 0.0
            codes.append(int(np.argmax(scores - noise)))
            self.seconds["code_predictor"] += time.perf_counter() - start
            position += embeds.shape[1]
            table = self.run("cp_codec_embedding", token_ids=np.array([codes[-1:]]), step_idx=np.array(step))
            embeds = table["embeddings"].copy()
            summed += embeds
        return codes, summed

    def generate(self, plan: prompt.Prompt, generation: Mapping[str, Any], seed: int, frames: int) -> NDArray[np.int64]:
        """Codes [frames, groups] of a prompt with its whole text, sampled according to a generation_config.json."""
        pad = self.rows("text_model", np.array([plan.pad_text_id]))
        embeds = self.rows("text_model", np.array(plan.text_ids))
        embeds += self.rows("codec_embedding", np.array(plan.codec_ids))
        rng = np.random.default_rng(seed)
        sampler = TalkerSampler(self.config, Sampling.talker(generation), rng)
        code_sampling = Sampling.code_predictor(generation)
        self.requests["talker"].reset_state()
        logits, hidden = self.talk(embeds[None], 0)
        codes: list[list[int]] = []
        while len(codes) < frames and (first := sampler(logits)) != sampler.end_id:
            frame, summed = self.predict_frame(hidden, first, code_sampling, rng)
            codes.append(frame)
            if len(codes) < frames:
                logits, hidden = self.talk(summed + pad, len(embeds) + len(codes) - 1)
        return np.array(codes)


def rotary(positions: int, size: int, theta: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines [1, 1, positions, size] of rotary embeddings."""
    angles = np.arange(positions)[:, None] / theta ** (np.arange(0, size, 2) / size)
    both = np.concatenate([angles, angles], axis=1)[None, None]
    return np.cos(both).astype(np.float32), np.sin(both).astype(np.float32)


def load(folder: str) -> tuple[Speak, dict[str, Any]]:
    side = Stepwise(Path(folder))
    speaker = next(iter(side.config["talker_config"]["spk_id"]))

    def speak(text: str, seed: int, frames: int, wav: str) -> Figures:
        side.seconds.clear()
        start = time.perf_counter()
        plan = prompt.custom_voice(side.config, side.tokenize, text, speaker, LANGUAGE)
        codes = side.generate(plan, side.generation, seed, frames)
        audio.write(wav, side.run("speech_decoder", codes=codes.T[None])["waveform"].reshape(-1), 24_000)
        total, spent, spoken = time.perf_counter() - start, side.seconds, len(codes)
        return {
            "seconds": total,
            "frames": spoken,
            "prefill_ms": 1000 * spent["prefill"],
            "talker_ms_a_frame": 1000 * spent["talker"] / max(1, spoken - 1),
            "code_predictor_ms_a_frame": 1000 * spent["code_predictor"] / spoken,
            "speech_decoder_ms_a_frame": 1000 * spent["speech_decoder"] / spoken,
        }

    return speak, {"precision": "int8", "properties": PROPERTIES}


if __name__ == "__main__":
    serve(lambda: load(sys.argv[1]))
