"""The host side of Qwen3-TTS as programs that call one step at a time write it: prompt, frame loop, greedy choice.

A reader drives a bundle through an utterance as a program does, from that program's contract alone: a subclass has one
method for each graph that the program calls. Nothing here uses the runtime of this project.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from transformers.audio_utils import mel_filter_bank

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Codes = NDArray[np.int64]
SUPPRESSED = 1024  # ids at the end of the talker's vocabulary, of which only the end token is ever generated


@dataclass(frozen=True)
class Asked:
    """What a program is asked to speak; a recording is 24 kHz audio [samples]."""

    text: str
    language: str | None = None
    speaker: str | None = None
    instruct: str | None = None
    recording: Floats | None = None
    reference_text: str | None = None
    text_first: bool = True


class Reader:
    """An utterance from prompt to codes. `ids` has the token ids by their names in a checkpoint's config.json."""

    ids: dict[str, Any]
    penalty = 1.05
    groups = 16

    def __init__(self, bundle: Path, properties: dict[str, Any]) -> None:
        self.bundle, self.properties, self.core = bundle, properties, ov.Core()

    def compiled(self, graph: str) -> ov.CompiledModel:
        return self.core.compile_model(self.bundle / f"{graph}.xml", "CPU", self.properties)

    # ---- one method for each graph; rows are [1, positions, width] ---------------------------------------------------

    def tokens(self, text: str) -> list[int]:
        raise NotImplementedError

    def text(self, ids: list[int]) -> Floats:
        raise NotImplementedError

    def codec(self, ids: list[int]) -> Floats:
        raise NotImplementedError

    def residual(self, codes: list[int], step: int) -> Floats:
        raise NotImplementedError

    def talk(self, rows: Floats, start: int) -> tuple[Floats, Floats]:
        """Logits [vocabulary] and hidden state [1, 1, width] of the last position; 0 starts an utterance."""
        raise NotImplementedError

    def predict(self, rows: Floats, start: int, step: int) -> Floats:
        """Logits [codes] of the last position; 0 starts a frame."""
        raise NotImplementedError

    def decode(self, codes: Codes) -> Floats:
        """Samples of frames [frames, groups]."""
        raise NotImplementedError

    def x_vector(self, recording: Floats) -> Floats:
        """[1, 1, width]"""
        raise NotImplementedError

    def encode(self, recording: Floats) -> Codes:
        """Frames [frames, groups]."""
        raise NotImplementedError

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def speak(self, asked: Asked, frames: int) -> Codes:
        """Greedy codes [frames, groups]."""
        prefill, beside = self.prompt(asked)
        logits, hidden = self.talk(prefill, 0)
        codes: list[list[int]] = []
        while len(codes) < frames:
            first = self.first_code(logits, {frame[0] for frame in codes})
            if first == self.ids["codec_eos_token_id"]:
                break
            frame, embedding = self.frame(hidden, first)
            text = beside[:, min(len(codes), beside.shape[1] - 1)][:, None]
            codes.append(frame)
            logits, hidden = self.talk(embedding + text, prefill.shape[1] + len(codes) - 1)
        return np.array(codes)

    def first_code(self, logits: Floats, seen: set[int]) -> int:
        scores = logits.copy()
        end = scores[self.ids["codec_eos_token_id"]]
        scores[-SUPPRESSED:] = -np.inf
        scores[self.ids["codec_eos_token_id"]] = end
        for code in seen:
            scores[code] = scores[code] / self.penalty if scores[code] > 0 else scores[code] * self.penalty
        return int(scores.argmax())

    def frame(self, hidden: Floats, first: int) -> tuple[list[int], Floats]:
        """A frame's codes, and the sum of their embeddings."""
        row = embedding = self.codec([first])
        codes, rows = [first], np.concatenate([hidden, row], axis=1)
        for step in range(self.groups - 1):
            start = 0 if step == 0 else step + 1
            codes.append(int(self.predict(rows, start, step).argmax()))
            rows = self.residual(codes[-1:], step)
            embedding = embedding + rows
        return codes, embedding

    # ---- the prompt --------------------------------------------------------------------------------------------------

    def prompt(self, asked: Asked) -> tuple[Floats, Floats]:
        """The prefill, and the text that each frame hears; the last row of it is repeated."""
        ids = self.ids
        bos, eos, pad = (self.text([ids[f"tts_{name}_token_id"]]) for name in ("bos", "eos", "pad"))
        tokens = self.tokens(f"<|im_start|>assistant\n{asked.text}<|im_end|>\n<|im_start|>assistant\n")
        role, spoken = self.text(tokens[:3]), self.text(tokens[3:-5])
        control = self.control(asked)
        parts = [role, np.concatenate([pad] * (control.shape[1] - 2) + [bos], axis=1) + control[:, :-1]]
        if asked.instruct:
            parts.insert(0, self.text(self.tokens(f"<|im_start|>user\n{asked.instruct}<|im_end|>\n")))
        if asked.reference_text is not None:
            said = self.tokens(f"<|im_start|>assistant\n{asked.reference_text}<|im_end|>\n")[3:-2]
            words = np.concatenate([self.text(said), spoken, eos], axis=1)
            frames = np.concatenate([control[:, -1:], self.reference(asked.recording)], axis=1)
            body, beside = self.in_context(words, frames, pad, asked.text_first)
        elif asked.text_first:
            words = np.concatenate([spoken, eos], axis=1)
            body = np.concatenate([words + self.codec([ids["codec_pad_id"]]), pad + control[:, -1:]], axis=1)
            beside = pad
        else:
            body, beside = spoken[:, :1] + control[:, -1:], np.concatenate([spoken[:, 1:], eos, pad], axis=1)
        return np.concatenate([*parts, body], axis=1), beside

    def control(self, asked: Asked) -> Floats:
        """Codec rows: the language, the voice, padding and the start of speech."""
        ids, language = self.ids, self.language(asked)
        tags = ("nothink", "think_bos", "think_eos") if language is None else ("think", "think_bos", "think_eos")
        row = [ids[f"codec_{tag}_id"] for tag in tags]
        parts = [self.codec(row if language is None else [*row[:2], language, row[2]])]
        if asked.speaker is not None:
            parts.append(self.codec([ids["spk_id"][asked.speaker]]))
        elif asked.recording is not None:
            parts.append(self.x_vector(asked.recording))
        return np.concatenate([*parts, self.codec([ids["codec_pad_id"], ids["codec_bos_id"]])], axis=1)

    def language(self, asked: Asked) -> int | None:
        dialect = self.ids["spk_is_dialect"].get(asked.speaker)
        if dialect and asked.language in (None, "chinese"):
            return self.ids["codec_language_id"][dialect]
        return None if asked.language is None else self.ids["codec_language_id"][asked.language]

    def reference(self, recording: Floats) -> Floats:
        """The summed embeddings of the recording's frames."""
        first, *others = self.encode(recording).T.tolist()
        return self.codec(first) + sum(self.residual(codes, step) for step, codes in enumerate(others))

    def in_context(self, words: Floats, frames: Floats, pad: Floats, text_first: bool) -> tuple[Floats, Floats]:
        """The prefill's body and the text beside the frames, of a recording's words and frames."""
        if text_first:
            return np.concatenate([words + self.codec([self.ids["codec_pad_id"]]), frames + pad], axis=1), pad
        length = frames.shape[1]
        padded = np.concatenate([words[:, :length]] + [pad] * max(0, length - words.shape[1]), axis=1)
        return padded + frames, np.concatenate([words[:, length:], pad], axis=1)


def log_mel(audio: Floats) -> Floats:
    """Log-mel features [1, frames, 128] of 24 kHz audio [samples]."""
    padded = np.pad(audio, (1024 - 256) // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 1024)[::256]
    spectrum = np.fft.rfft(frames * np.hanning(1025)[:-1], axis=-1)
    filters = mel_filter_bank(513, 128, 0.0, 12_000.0, 24_000, norm="slaney", mel_scale="slaney")
    magnitude = np.sqrt(np.abs(spectrum) ** 2 + 1e-9)
    return np.log(np.maximum(magnitude @ filters, 1e-5)).astype(np.float32)[None]
