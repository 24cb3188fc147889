"""Teacher forcing: graphs fed what `rollout` recorded, so that each step is judged on the same past."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from safetensors.numpy import load_file

# Exact arithmetic, to compare graphs rather than the shortcuts of devices.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
JUDGED = slice(None, None, 4)  # the frames whose code predictor is judged
# Noise that makes a code win its race whatever the logits say: -log of it is 87.
CERTAIN = np.float32(1e-38)
Arrays = dict[str, NDArray[Any]]
Floats = NDArray[np.float32]
Codes = NDArray[np.int64]


def request(xml: Path) -> ov.InferRequest:
    """An infer request of a graph, compiled for the CPU in float32 throughout."""
    return ov.Core().compile_model(xml, "CPU", EXACT).create_infer_request()


def likeliest(request: ov.InferRequest, hidden: Floats, codes: Codes) -> Codes:
    """The code predictor's likeliest code of each group after the first, given the codes before it.

    `hidden` is [width], `codes` [groups]; the result [groups - 1]. The graph draws a whole frame, so each group gets a
    row of a batch, in which the noise leaves it free and makes the earlier groups' codes certain.
    """
    rows = len(codes) - 1
    noise = np.repeat(forced_noise(request.get_compiled_model(), codes), rows, axis=0)
    for row in range(rows):
        noise[row, row:] = 1
    call = frame_call(np.repeat(hidden[None], rows, axis=0), np.repeat(codes[:1], rows), noise)
    return np.diagonal(request.infer(call)["codes"][:, 1:]).copy()


def forced_noise(graph: ov.Model | ov.CompiledModel, codes: Codes) -> NDArray[np.float32]:
    """Noise [1, groups - 1, codebook] with which a code predictor can only draw `codes` [groups]."""
    _, groups, codebook = graph.input("noise").get_partial_shape()
    noise = np.ones((1, groups.get_length(), codebook.get_length()), np.float32)
    noise[0, np.arange(len(codes) - 1), codes[1:]] = CERTAIN
    return noise


def frame_call(hidden: Floats, first_codes: Codes, noise: NDArray[np.float32]) -> Arrays:
    """Inputs of the code predictor: hidden states [batch, width], first codes [batch], sampled by the noise alone."""
    return {
        "talker_hidden": hidden[:, None],
        "first_code": first_codes[:, None],
        "noise": noise,
        "temperature": np.ones(1, np.float32),
        "top_k": np.array([noise.shape[2]], np.int64),
        "top_p": np.ones(1, np.float32),
    }


def talker_call(inputs: Floats, start: int = 0) -> Arrays:
    """The talker's inputs for embeddings [positions, width] that follow `start` positions."""
    return {
        "inputs_embeds": inputs[None],
        "position_ids": np.arange(start, start + len(inputs), dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }


def read(folder: Path, split: str) -> list[Arrays]:
    """The recording of each text of a split, as arrays by name."""
    texts: dict[int, Arrays] = {}
    for key, array in load_file(folder / f"{split}.safetensors").items():
        number, what = key.split(".", 1)
        texts.setdefault(int(number), {})[what] = array
    return [texts[number] for number in sorted(texts)]
