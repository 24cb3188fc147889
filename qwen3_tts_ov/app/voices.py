"""The voices that a server's base bundles clone: saved ones by name, and recordings that come with a request."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from .. import names, recording
from ..errors import AudioError, RequestError, boundary
from ..model import Model
from ..synthesizer import Synthesizer
from ..voice import ENDING, VoicePrompt

MOST_URL = 16_000_000  # bytes of a data URL: a minute of 48 kHz stereo in 16 bits
_MOST_SAVED, _MOST_KEPT = 1000, 64  # voices of the folder, prompts of recordings in memory
_NAME = re.compile(r"\w[\w -]{0,62}(?<! )")  # no path, nothing hidden, the same on every system


class Voices:
    """Voice prompts by name, and those of the last recordings by their hash. With a `folder`, clients may change it."""

    def __init__(self, saved: Mapping[str, VoicePrompt], folder: Path | None = None) -> None:
        self.saved, self._folder = dict(saved), folder
        self._kept: OrderedDict[str, VoicePrompt] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path, change: bool = False) -> Voices:
        """The voices saved in a folder, by file name without ending. Raises AudioError."""
        with boundary(AudioError, f"{folder}: cannot be read"):
            if change:
                folder.mkdir(parents=True, exist_ok=True)
            saved = {path.stem: VoicePrompt.load(path) for path in sorted(folder.glob(f"*{ENDING}"))}
        if not saved and not change:
            raise AudioError(f"{folder}: it has no voice prompt ({ENDING}); save one with `qwen3-tts-ov voice`")
        return cls(saved, folder if change else None)

    @property
    def change(self) -> bool:
        """Whether voices can be added and deleted."""
        return self._folder is not None

    def fitting(self, model: Model) -> list[str]:
        """The saved voices that a base model of this size can clone."""
        width = (model.config["talker_config"]["hidden_size"],)
        return sorted(name for name, voice in self.saved.items() if voice.x_vector.shape == width)

    def of(self, synthesizer: Synthesizer, sound: bytes, reference_text: str | None) -> VoicePrompt:
        """The voice of a recording, computed once. Raises AudioError, DeviceError."""
        said = b"" if reference_text is None else b"text:" + reference_text.encode()
        parts = (synthesizer.model.name.encode(), said, sound)
        key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
        with self._lock:
            if (voice := self._kept.get(key)) is None:
                voice = self._kept[key] = synthesizer.voice_prompt(sound, reference_text)
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return voice

    def check_new(self, name: str) -> None:
        """Raises RequestError for a name under which no voice can be saved."""
        if not _NAME.fullmatch(name):
            raise RequestError("name: up to 63 letters, digits, spaces, - and _, beginning with a letter or digit")
        if taken := names.find(name, self.saved):
            raise RequestError(f"there is a voice {taken!r} already; delete it first, or choose another name")
        if len(self.saved) >= _MOST_SAVED:
            raise RequestError(f"there are {_MOST_SAVED} voices already; delete one first")

    def add(self, name: str, voice: VoicePrompt) -> None:
        """Saves a voice in the folder. Raises RequestError, AudioError."""
        assert self._folder is not None
        with self._lock:
            self.check_new(name)
            voice.save(self._folder / f"{name}{ENDING}")
            self.saved = {**self.saved, name: voice}

    def delete(self, name: str) -> bool:
        """Deletes a voice and its file, if there is one of exactly that name. Raises AudioError."""
        assert self._folder is not None
        with self._lock:
            if name not in self.saved:
                return False
            with boundary(AudioError, f"{name}: cannot delete it"):
                (self._folder / f"{name}{ENDING}").unlink(missing_ok=True)
            self.saved = {known: voice for known, voice in self.saved.items() if known != name}
            return True


def recording_of(url: str) -> bytes:
    """The recording in a data URL: a client's string is never a path, nor a URL to fetch.

    Raises RequestError, AudioError.
    """
    if not url.lower().startswith("data:"):
        raise RequestError("ref_audio: send the recording itself, as a data URL (data:audio/wav;base64,...)")
    if len(url) > MOST_URL:
        raise RequestError(f"ref_audio: the recording is over {MOST_URL * 3 // 4_000_000} MB; 3 to 15 s are best")
    return recording.data_url(url)
