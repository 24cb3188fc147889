"""openvino.genai and optimum-intel, from tests/contracts/genai.md: masks and positions outside, a tokenizer as a graph.

`ForNpu` calls the code predictor as openvino.genai does for NPU: without state, one position at a time, the cache of
fixed size kept by the caller.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_tokenizers  # registers its operations with OpenVINO
from openvino._offline_transformations import stateful_to_stateless_transformation

from tests.readers.host import Asked, Codes, Floats, Reader, log_mel

UNSEEN = np.finfo(np.float32).min
assert openvino_tokenizers


class GenAI(Reader):
    def __init__(self, bundle: Path, properties: dict[str, Any]) -> None:
        super().__init__(bundle, properties)
        config = json.loads((bundle / "config.json").read_text())
        self.ids = {"spk_is_dialect": {}} | config | config["talker_config"]
        self.tokenizer = self.core.compile_model(bundle / "openvino_tokenizer.xml", "CPU")
        self.text_embeddings = self.compiled("openvino_text_embeddings")
        self.talker_embeddings = self.compiled("openvino_talker_embeddings")
        self.predictor_embeddings = self.compiled("openvino_code_predictor_embeddings")
        self.decoder = self.compiled("openvino_codec_decoder")
        self.talker = self.compiled("openvino_talker_model").create_infer_request()
        self.predictor = self.predictor_request()

    def predictor_request(self) -> ov.InferRequest:
        return self.compiled("openvino_code_predictor_model").create_infer_request()

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer([text])["input_ids"][0].tolist()

    def text(self, ids: list[int]) -> Floats:
        return self.text_embeddings([np.array([ids])])[0]

    def codec(self, ids: list[int]) -> Floats:
        return self.talker_embeddings([np.array([ids])])[0]

    def residual(self, codes: list[int], step: int) -> Floats:
        return self.predictor_embeddings({"input_ids": np.array([codes]), "step": np.array(step)})[0]

    def talk(self, rows: Floats, start: int) -> tuple[Floats, Floats]:
        where = positions(rows, start)
        step(self.talker, rows, start, {"position_ids": np.stack([where] * 3)})
        hidden = self.talker.get_tensor("last_hidden_state").data[:, -1:].copy()
        return self.talker.get_tensor("logits").data[0, -1].copy(), hidden

    def predict(self, rows: Floats, start: int, number: int) -> Floats:
        more = {"position_ids": positions(rows, start), "step": np.array(number)}
        step(self.predictor, rows, start, more)
        return self.predictor.get_tensor("logits").data[0, -1].copy()

    def decode(self, codes: Codes) -> Floats:
        return self.decoder({"audio_codes": codes.T[None]})["waveform"][0, 0]

    def x_vector(self, recording: Floats) -> Floats:
        return self.compiled("openvino_speaker_encoder")([log_mel(recording)])[0][:, None]

    def encode(self, recording: Floats) -> Codes:
        return self.compiled("openvino_codec_encoder")([recording[None, None]])[0][0].T

    def language(self, asked: Asked) -> int | None:
        """A dialect's speaker speaks it only where no language is asked for."""
        if asked.language is not None:
            return self.ids["codec_language_id"][asked.language]
        return super().language(asked)


class ForNpu(GenAI):
    def predictor_request(self) -> ov.InferRequest:
        model = self.core.read_model(self.bundle / "openvino_code_predictor_model.xml")
        shapes: dict[str, list[int]] = {"step": [1]}
        model.reshape(shapes)
        stateful_to_stateless_transformation(model)
        slots = self.groups
        shapes |= {"attention_mask": [1, 1, 1, slots + 1], "position_ids": [1, 1]}
        for port in model.inputs:
            name = port.get_any_name()
            sizes = port.get_partial_shape()
            if name == "inputs_embeds":
                shapes[name] = [1, 1, sizes[2].get_length()]
            elif name.startswith("past_key_values."):
                shapes[name] = [1, sizes[1].get_length(), slots, sizes[3].get_length()]
        assert len(shapes) == len(model.inputs), "every input is found by its one name"
        model.reshape(shapes)
        request = self.core.compile_model(model, "CPU", self.properties).create_infer_request()
        self.caches = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name.startswith("past")}
        return request

    def predict(self, rows: Floats, start: int, number: int) -> Floats:
        for position in range(start, start + rows.shape[1]):
            mask = np.full((1, 1, 1, self.groups + 1), UNSEEN, np.float32)
            mask[..., :position] = mask[..., -1] = 0
            where = {"position_ids": np.array([[position]]), "attention_mask": mask, "step": np.array([number])}
            row = rows[:, position - start][:, None]
            found = self.predictor.infer({"inputs_embeds": row, **where, **self.caches})
            for name, cache in self.caches.items():
                present = found[name.replace("past_key_values", "present")]
                cache[:, :, position] = present[:, :, -1]
        return found["logits"][0, -1].copy()


def positions(rows: Floats, start: int) -> np.ndarray:
    return np.arange(start, start + rows.shape[1])[None]


def step(request: ov.InferRequest, rows: Floats, start: int, more: dict[str, np.ndarray]) -> None:
    if start == 0:
        request.reset_state()
    seen = np.arange(start + rows.shape[1]) <= positions(rows, start)[0][:, None]
    mask = np.where(seen, np.float32(0), UNSEEN)[None, None]
    request.infer({"inputs_embeds": rows, "attention_mask": mask, "beam_idx": np.zeros(1, np.int32), **more})
