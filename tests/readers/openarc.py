"""OpenArc's engine, from tests/contracts/openarc.md: rotary tables outside, tensors set and read by name."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from transformers import AutoTokenizer

from tests.readers.host import Codes, Floats, Reader, log_mel

HEAD, THETA = 128, 1e6
# What the program has in its source; it reads no config.json.
IDS = {
    "tts_pad_token_id": 151671, "tts_bos_token_id": 151672, "tts_eos_token_id": 151673,
    "codec_pad_id": 2148, "codec_bos_id": 2149, "codec_eos_token_id": 2150, "codec_think_id": 2154,
    "codec_nothink_id": 2155, "codec_think_bos_id": 2156, "codec_think_eos_id": 2157,
    "spk_id": {
        "serena": 3066, "vivian": 3065, "uncle_fu": 3010, "ryan": 3061, "aiden": 2861, "ono_anna": 2873,
        "sohee": 2864, "eric": 2875, "dylan": 2878,
    },
    "spk_is_dialect": {"eric": "sichuan_dialect", "dylan": "beijing_dialect"},
    "codec_language_id": {
        "chinese": 2055, "english": 2050, "german": 2053, "italian": 2070, "portuguese": 2071, "spanish": 2054,
        "japanese": 2058, "korean": 2064, "french": 2061, "russian": 2069, "beijing_dialect": 2074,
        "sichuan_dialect": 2062,
    },
}  # fmt: skip


class OpenArc(Reader):
    ids = IDS

    def __init__(self, bundle: Path, properties: dict[str, Any]) -> None:
        super().__init__(bundle, properties)
        self.tokenizer = AutoTokenizer.from_pretrained(bundle)
        self.text_model = self.compiled("text_model")
        self.codec_embedding = self.compiled("codec_embedding")
        self.cp_codec_embedding = self.compiled("cp_codec_embedding")
        self.decoder = self.compiled("speech_tokenizer/speech_decoder")
        self.talker = self.compiled("talker").create_infer_request()
        self.predictor = self.compiled("code_predictor").create_infer_request()

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def text(self, ids: list[int]) -> Floats:
        return call(self.text_model, {"token_ids": np.array([ids])})["projected"]

    def codec(self, ids: list[int]) -> Floats:
        return call(self.codec_embedding, {"token_ids": np.array([ids])})["embeddings"]

    def residual(self, codes: list[int], step: int) -> Floats:
        return call(self.cp_codec_embedding, {"token_ids": np.array([codes]), "step_idx": np.array(step)})["embeddings"]

    def talk(self, rows: Floats, start: int) -> tuple[Floats, Floats]:
        found = step(self.talker, rows, start, {})
        return found["logits"][0, -1], found["hidden"][:, -1:]

    def predict(self, rows: Floats, start: int, number: int) -> Floats:
        return step(self.predictor, rows, start, {"generation_steps": np.array(number)})["logits"][0, -1]

    def decode(self, codes: Codes) -> Floats:
        name = self.decoder.input(0).get_any_name()
        return call(self.decoder, {name: codes.T[None]})["waveform"].squeeze()

    def x_vector(self, recording: Floats) -> Floats:
        return call(self.compiled("speaker_encoder"), {"mels": log_mel(recording)})["embedding"][:, None]

    def encode(self, recording: Floats) -> Codes:
        return call(self.compiled("speech_tokenizer/speech_encoder"), {"audio": recording[None]})["codes"][0]

    def in_context(self, words: Floats, frames: Floats, pad: Floats, text_first: bool) -> tuple[Floats, Floats]:
        """Always with the whole text first, and with one row more than the official prompt."""
        body, beside = super().in_context(words, frames, pad, text_first=True)
        return np.concatenate([body, pad + self.codec([self.ids["codec_bos_id"]])], axis=1), beside


def call(graph: ov.CompiledModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = graph(inputs)
    return {port.get_any_name(): found[port] for port in graph.outputs}


def step(request: ov.InferRequest, rows: Floats, start: int, more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if start == 0:
        request.reset_state()
    inverse = 1.0 / THETA ** (np.arange(0, HEAD, 2, dtype=np.float32) / HEAD)
    angles = np.outer(np.arange(start, start + rows.shape[1], dtype=np.float32), inverse)
    angles = np.concatenate([angles, angles], axis=-1).astype(np.float32)[None, None]
    where = {"cos": np.cos(angles), "sin": np.sin(angles), "beam_idx": np.zeros(1, np.int32)}
    request.infer({"inputs_embeds": rows, **where, **more})
    names = [port.get_any_name() for port in request.model_outputs]
    return {name: request.get_tensor(name).data.copy() for name in names}
