"""No library's exception reaches a caller raw: each is raised underneath the public entry points."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import huggingface_hub.errors
import numpy as np
import openvino as ov
import pytest
import safetensors
import safetensors.numpy
import soundfile
import soxr
import tokenizers

from qwen3_tts_ov import Bundle, Qwen3TTSError, Synthesizer, VoicePrompt, bundle
from qwen3_tts_ov.engine import devices

SAMPLES = (0.3 * np.sin(np.arange(48_000) / 20)).astype(np.float32)


def exceptions_of(*modules: Any) -> list[type[Exception]]:
    """Every exception class that the modules define."""
    found = [value for module in modules for value in vars(module).values() if inspect.isclass(value)]
    return sorted({kind for kind in found if issubclass(kind, Exception)}, key=lambda kind: kind.__name__)


SYSTEM: list[type[Exception]] = [OSError, PermissionError, TimeoutError, RuntimeError, ValueError, TypeError, Exception]
FAULTS = {
    "huggingface_hub": exceptions_of(huggingface_hub.errors),
    "httpx2": exceptions_of(httpx2),
    "openvino": exceptions_of(ov._pyopenvino),
    "tokenizers": [],  # a bare Exception
    "safetensors": [safetensors.SafetensorError],
    "soundfile": exceptions_of(soundfile),
    "soxr": [],  # RuntimeError, ValueError and TypeError
}


def raised(kind: type[Exception]) -> Exception:
    """An exception with a message of two lines, of a class whose constructor may want more than that."""
    if kind is soundfile.LibsndfileError:  # its text comes from libsndfile
        return kind(1, "a fault\nin two lines: ")
    error = kind.__new__(kind)
    error.args = ("a fault\nin two lines",)
    return error


def failing(error: Exception) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


class Failing:
    """Stands for a function or class of a library: it fails when it is called, and so do its methods."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise self._error

    def __getattr__(self, name: str) -> Any:
        return self


@pytest.fixture(scope="module")
def base(artifact: Callable[..., Path]) -> Bundle:
    return Bundle.load(artifact("bundle", "tiny-base"))


@pytest.fixture(scope="module")
def loaded(base: Bundle, model_cache: Path) -> Synthesizer:
    made = Synthesizer(base, cache_dir=model_cache)
    made.voice_prompt((SAMPLES, 24_000), "What I say here.")  # the encoders are compiled
    return made


@pytest.fixture(scope="module")
def nobody(loaded: Synthesizer) -> VoicePrompt:
    return VoicePrompt(np.zeros(loaded.model.config["talker_config"]["hidden_size"], np.float32))


def first_of_its_tokenizer(folder: Path) -> Bundle:
    """A bundle that does not share the tokenizer of another."""
    bundle._tokenizer.cache_clear()
    return Bundle.load(folder, verify=False)


@pytest.fixture(scope="module")
def entries(
    base: Bundle, loaded: Synthesizer, nobody: VoicePrompt, tmp_path_factory
) -> dict[str, Callable[[], object]]:
    """The public entry points, by name, ready to be called."""
    folder = tmp_path_factory.mktemp("entries")
    nobody.save(folder / "nobody.safetensors")
    spoken = loaded.speak("Hi.", nobody, max_frames=2)
    soundfile.write(folder / "me.wav", SAMPLES, 24_000)
    return {
        "pull": lambda: Bundle.load("acme/voice"),
        "model": lambda: first_of_its_tokenizer(base.folder).model,
        "compile": lambda: Synthesizer(base, cache_dir=False),
        "devices": devices,
        "speak": lambda: loaded.speak("Hi.", nobody, max_frames=2),
        "stream": lambda: list(loaded.stream("Hi.", nobody, max_frames=2)),
        "clone": lambda: loaded.voice_prompt((SAMPLES, 16_000)),
        "clone a file": lambda: loaded.voice_prompt(folder / "me.wav"),
        "save speech": lambda: spoken.save(folder / "speech.wav"),
        "save a voice": lambda: nobody.save(folder / "again.safetensors"),
        "load a voice": lambda: VoicePrompt.load(folder / "nobody.safetensors"),
        "speak in a saved voice": lambda: loaded.speak("Hi.", folder / "nobody.safetensors", max_frames=2),
    }


# Where a library is called: its name, what is replaced, and the entry points that call it.
PLACES: list[tuple[str, Any, str, list[str]]] = [
    ("huggingface_hub", huggingface_hub, "hf_hub_download", ["pull"]),
    ("httpx2", huggingface_hub, "hf_hub_download", ["pull"]),
    ("openvino", ov, "Core", ["compile", "devices"]),
    ("openvino", ov.Core, "compile_model", ["compile"]),
    ("openvino", ov.Core, "read_model", ["compile"]),
    ("openvino", ov.Core, "available_devices", ["compile", "devices"]),
    ("openvino", ov.InferRequest, "infer", ["speak", "stream", "clone"]),
    ("openvino", ov.InferRequest, "reset_state", ["speak", "stream"]),
    ("openvino", ov.CompiledModel, "create_infer_request", ["clone"]),
    ("tokenizers", tokenizers, "Tokenizer", ["model"]),
    ("safetensors", safetensors.numpy, "save", ["save a voice"]),
    ("soundfile", soundfile, "SoundFile", ["clone a file", "save speech"]),
    ("soxr", soxr, "resample", ["clone"]),
    ("safetensors", safetensors, "safe_open", ["load a voice", "speak in a saved voice"]),
]


CASES = [
    pytest.param(library, owner, name, entry, id=f"{library} in {name}: {entry}")
    for library, owner, name, called in PLACES
    for entry in called
]


@pytest.mark.parametrize(("library", "owner", "name", "entry"), CASES)
def test_an_exception_of_a_library_becomes_one_of_this_package_in_one_line(
    library, owner, name, entry, entries, monkeypatch
):
    for kind in dict.fromkeys([*FAULTS[library], *SYSTEM]):
        error = raised(kind)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, property(failing(error)) if name == "available_devices" else Failing(error))
            with pytest.raises(Qwen3TTSError) as told:
                entries[entry]()
        assert "\n" not in str(told.value), kind
        assert told.value.__context__ is error
    entries["speak"]()  # nothing is left broken


def test_a_file_that_vanishes_from_the_cache_while_it_is_written_stops_nothing(base, tmp_path, monkeypatch):
    """As happens, rarely, when another process compiles the same graph into the same cache."""
    compile_model = ov.Core.compile_model

    def vanishing(core: ov.Core, graph: Any, device: str, properties: dict[str, Any]) -> ov.CompiledModel:
        if folder := properties.get("CACHE_DIR"):
            raise RuntimeError(f"filesystem error: cannot set permissions: No such file or directory [{folder}/1.blob]")
        return compile_model(core, graph, device, properties)

    monkeypatch.setattr(ov.Core, "compile_model", vanishing)
    assert Synthesizer(base, cache_dir=tmp_path).engine.compile_seconds.keys() >= {"talker", "code_predictor"}
