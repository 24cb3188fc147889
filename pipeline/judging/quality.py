"""What compression costs: a compressed graph fed what the exported one was fed (teacher forcing), and their answers.

Tables are not judged here: what they lose shows in how close their rows come to PyTorch's (closeness.py).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray

from model_src.config import SpeakerEncoderConfig
from model_src.speaker_encoder import MelFeatures
from pipeline.graphs import teacher_forcing
from pipeline.graphs.teacher_forcing import JUDGED, Arrays
from pipeline.judging.closeness import Closeness, closeness, compare

Quality = dict[str, float]


def assess(name: str, graph: Path, record: Path, exported: Path, spoken: Path) -> tuple[Closeness, Quality]:
    """A compressed graph (.xml), compiled once: how close it comes to PyTorch's `record`, and its quality."""
    request = teacher_forcing.request(graph)
    return compare(request, record), judge(name, request, exported, spoken)


def judge(name: str, request: ov.InferRequest, exported: Path, spoken: Path) -> Quality:
    """The quality of a compressed graph on the held-out texts that `rollout` left in the folder `spoken`.

    `exported` is the graph that it was made of; encoders, which no text goes through, are compared with it directly.
    A component without a judge has no figures here. pipeline/judging/gates.py declares the measures.
    """
    if name not in JUDGES:
        return {}
    measured = JUDGES[name](request, exported, teacher_forcing.read(spoken, "held_out"))
    return {measure: round(float(value), 4) for measure, value in measured.items()}


def talker(request: ov.InferRequest, _: Path, texts: list[Arrays]) -> Quality:
    """Of all steps: the same most likely code, that code among the five most likely, and the mean KL divergence."""
    expected = np.concatenate([text["logits"] for text in texts])
    found = np.concatenate([talker_logits(request, text["inputs"], len(text["logits"])) for text in texts])
    choices, ranked = expected.argmax(-1), np.argsort(-found, axis=-1)
    ours, theirs = (torch.from_numpy(each).double().log_softmax(-1).numpy() for each in (expected, found))
    return {
        "top1": (ranked[:, 0] == choices).mean(),
        "top5": (ranked[:, :5] == choices[:, None]).any(-1).mean(),
        "kl": (np.exp(ours) * (ours - theirs)).sum(-1).mean(),
    }


def talker_logits(request: ov.InferRequest, inputs: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """Logits [steps, vocabulary] of a prefill and the steps after it, all from `inputs` [positions, width]."""
    request.reset_state()
    prefill = len(inputs) - steps + 1
    starts = [0, *range(prefill, len(inputs))]
    pieces = np.split(inputs, starts[1:])
    calls = [teacher_forcing.talker_call(piece, start) for piece, start in zip(pieces, starts, strict=True)]
    return np.stack([request.infer(call)["logits"][0, 0].copy() for call in calls])


def code_predictor(request: ov.InferRequest, _: Path, texts: list[Arrays]) -> Quality:
    """The share of equal most likely codes after the same codes, in either half of a frame's groups."""
    equal = np.concatenate([
        teacher_forcing.likeliest(request, hidden, codes)[None] == expected
        for text in texts
        for hidden, codes, expected in zip(
            text["hidden"][JUDGED], text["codes"][JUDGED], text["likeliest"], strict=True
        )
    ])  # fmt: skip
    half = equal.shape[1] // 2
    return {"early_groups": equal[:, :half].mean(), "late_groups": equal[:, half:].mean()}


def speech_decoder(request: ov.InferRequest, _: Path, texts: list[Arrays]) -> Quality:
    """The waveform's SNR, and the mean distance between log-mel spectra."""
    found = []
    for text in texts:
        request.reset_state()
        found.append(request.infer({"codes": text["codes"].T[None]})["waveform"][0, 0].copy())
    heard, expected = np.concatenate(found), np.concatenate([text["waveform"] for text in texts])
    return {
        "waveform_snr_db": closeness(expected, heard)[1],
        "log_mel_db": np.abs(log_mel_db(heard) - log_mel_db(expected)).mean(),
    }


def speech_encoder(request: ov.InferRequest, exported: Path, texts: list[Arrays]) -> Quality:
    """The share of equal codes for the waveforms of the texts."""
    pairs = both(request, exported, texts)
    return {"code_agreement": np.concatenate([(ours == theirs).ravel() for ours, theirs in pairs]).mean()}


def speaker_encoder(request: ov.InferRequest, exported: Path, texts: list[Arrays]) -> Quality:
    """The lowest cosine between x-vectors."""
    return {
        "cosine": min(
            np.vdot(ours, theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs))
            for ours, theirs in both(request, exported, texts)
        )
    }


Judge = Callable[[ov.InferRequest, Path, list[Arrays]], Quality]
JUDGES: dict[str, Judge] = {
    judged.__name__: judged for judged in (talker, code_predictor, speech_decoder, speech_encoder, speaker_encoder)
}


def both(request: ov.InferRequest, exported: Path, texts: list[Arrays]) -> list[tuple[NDArray, NDArray]]:
    """What a compressed encoder and the exported one answer to each text's waveform."""
    original = teacher_forcing.request(exported)
    calls = [{"audio": text["waveform"][None]} for text in texts]
    return [(request.infer(call)[0].copy(), original.infer(call)[0].copy()) for call in calls]


def log_mel_db(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-mel magnitudes [1, steps, bands] of 24 kHz samples [samples], in dB."""
    mel = MelFeatures(SpeakerEncoderConfig(enc_dim=1))
    return 20 / np.log(10) * mel(torch.from_numpy(waveform)[None]).numpy()
