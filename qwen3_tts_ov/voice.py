"""A voice to clone, computed once from a recording and saved in a small safetensors file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import output
from .errors import AudioError, boundary

ENDING = ".safetensors"  # by which a saved voice prompt is told from a recording

_FORMAT = "qwen3-tts-voice-prompt-1"


@dataclass(frozen=True, eq=False)
class VoicePrompt:
    """A recording as the model takes it.

    With `codes` and `text` the voice is cloned in context (ICL), including its manner of speaking; with the x-vector
    alone, only its timbre.
    """

    x_vector: NDArray[np.float32]  # [talker width]
    codes: NDArray[np.int64] | None = None  # [frames, code groups]; 80 ms a frame
    text: str | None = None  # what the recording says

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a .safetensors file, whole or not at all. Raises AudioError if it cannot."""
        from safetensors.numpy import save

        tensors: dict[str, np.ndarray] = {"x_vector": self.x_vector}
        metadata = {"format": _FORMAT}
        if self.codes is not None and self.text is not None:
            tensors["codes"] = np.ascontiguousarray(self.codes)
            metadata["text"] = self.text
        with boundary(AudioError, f"{path}: cannot write the voice prompt"):
            data = save(tensors, metadata)
        output.check_file(Path(path), [ENDING])
        output.write(Path(path), data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VoicePrompt:
        """Reads what `save` wrote. Raises AudioError for anything else."""
        from safetensors import safe_open

        with boundary(AudioError, f"{path}: not a voice prompt", advice="make it with voice_prompt()"):
            if not Path(path).is_file():
                raise AudioError(f"{path}: there is no such file")
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        voice = cls(tensors.get("x_vector", np.empty(0)), tensors.get("codes"), metadata.get("text"))
        if metadata.get("format") != _FORMAT or not voice._plausible():
            raise AudioError(f"{path}: not a voice prompt of this version; make it again with voice_prompt()")
        return voice

    def _plausible(self) -> bool:
        vector = self.x_vector
        if vector.ndim != 1 or vector.size == 0 or vector.dtype != np.float32 or not np.isfinite(vector).all():
            return False
        if self.codes is None or self.text is None:
            return self.codes is None and self.text is None
        return self.codes.ndim == 2 and self.codes.size > 0 and self.codes.dtype == np.int64
