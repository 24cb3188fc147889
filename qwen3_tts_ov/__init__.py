"""Qwen3-TTS on OpenVINO: load a bundle, speak. Importing this is cheap; each name loads what it needs when it is used.

from qwen3_tts_ov import Bundle, Synthesizer

synthesizer = Synthesizer(Bundle.load("bundle"))
synthesizer.speak("Good morning.").save("morning.wav")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import Bundle as Bundle
    from .model import Model as Model
    from .sampling import Sampling as Sampling
    from .speech import Outcome as Outcome
    from .speech import Speech as Speech
    from .speech import SpeechStream as SpeechStream
    from .synthesizer import Synthesizer as Synthesizer
    from .voice import VoicePrompt as VoicePrompt

from .errors import AudioError, BundleError, Cancelled, DeviceError, Qwen3TTSError, RequestError

_HOMES = {
    "Bundle": "bundle",
    "Model": "model",
    "Outcome": "speech",
    "Sampling": "sampling",
    "Speech": "speech",
    "SpeechStream": "speech",
    "Synthesizer": "synthesizer",
    "VoicePrompt": "voice",
}

__all__ = [*_HOMES, "AudioError", "BundleError", "Cancelled", "DeviceError", "Qwen3TTSError", "RequestError"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
