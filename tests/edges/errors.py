"""What libraries raise underneath, as a user is told it."""

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import httpx2
import huggingface_hub
import huggingface_hub.errors
import numpy as np
import openvino as ov
import safetensors.numpy

from qwen3_tts_ov import Bundle, Synthesizer, VoicePrompt
from qwen3_tts_ov.model import Model

from .case import Case, Desk


def pulling(error: Exception) -> Callable[[Desk], str]:
    """`pull` when the Hub's client raises this."""

    def do(desk: Desk) -> str:
        with mock.patch.object(huggingface_hub, "hf_hub_download", side_effect=error):
            return desk.command("pull acme/voice")

    return do


def every(module: object) -> Callable[[Desk], str]:
    """`pull` for every exception class of a module; the messages, counted."""

    def do(desk: Desk) -> str:
        kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, Exception)]
        told = []
        for kind in kinds:
            error = kind.__new__(kind)
            error.args = ("a fault\nin two lines",)
            told.append(pulling(error)(desk))
        assert all(line.startswith("error: acme/voice: ") for line in told), told
        return f"{len(told)} classes, each one line"

    return do


def speaking(target: type, name: str, error: Exception) -> Callable[[Desk], str]:
    """Speech while a method of OpenVINO raises this."""

    def do(desk: Desk) -> str:
        with mock.patch.object(target, name, side_effect=error):
            desk.synthesizer("custom-voice").speak("Hi.", max_frames=2)
        return "speech"

    return do


def with_graph(content: bytes) -> Callable[[Desk], str]:
    """Compiles a model whose talker is something else."""

    def do(desk: Desk) -> str:
        model = desk.synthesizer("custom-voice").model
        broken = desk.folder / "talker.xml"
        broken.write_bytes(content)
        shutil.copy(model.graphs["talker"].with_suffix(".bin"), desk.folder / "talker.bin")
        Synthesizer(Model(**{**vars(model), "graphs": {**model.graphs, "talker": broken}}))
        return "compiled"

    return do


def without_weights(desk: Desk) -> str:
    model = desk.synthesizer("custom-voice").model
    shutil.copy(model.graphs["talker"], desk.folder / "talker.xml")
    lacking = {**model.graphs, "talker": desk.folder / "talker.xml"}
    Synthesizer(Model(**{**vars(model), "graphs": lacking}))
    return "compiled"


def prompt(write: Callable[[Path], object]) -> Callable[[Desk], str]:
    """Loads a voice prompt that is not one."""

    def do(desk: Desk) -> str:
        path = desk.folder / "me.safetensors"
        write(path)
        VoicePrompt.load(path)
        return "loaded"

    return do


def placed(**how: object) -> Callable[[Desk], str]:
    def do(desk: Desk) -> str:
        Synthesizer(Bundle.load(desk.bundle("custom-voice"), verify=False), **how)  # type: ignore[arg-type]
        return "compiled"

    return do


def bf16(path: Path) -> None:
    """A tensor of a type that numpy lacks."""
    header = b'{"x_vector":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


AGAIN = "run it again to resume"
CASES = [
    Case("a stalled connection", pulling(httpx2.ReadTimeout("The read operation timed out")), AGAIN),
    Case("a dropped connection", pulling(httpx2.RemoteProtocolError("peer closed connection")), AGAIN),
    Case("no such host", pulling(httpx2.ConnectError("[Errno -2] Name or service not known")), AGAIN),
    Case("a broken archive", pulling(httpx2.DecodingError("Error -3 while decompressing")), AGAIN),
    Case("a redirect in circles", pulling(httpx2.TooManyRedirects("Exceeded maximum allowed redirects.")), AGAIN),
    Case("an invalid address of a proxy", pulling(httpx2.InvalidURL("Invalid port: 'x'")), AGAIN),
    Case("an error without a message", pulling(httpx2.ReadError("")), "the fetch failed: ReadError"),
    Case("Xet fails", pulling(RuntimeError("Data processing error: CAS service error")), AGAIN),
    Case("a full disk", pulling(OSError(28, "No space left on device")), "No space left on device"),
    Case("a cache that cannot be written", pulling(PermissionError(13, "Permission denied", "/x")), "set HF_HOME"),
    Case("a read-only file system", pulling(OSError(30, "Read-only file system", "/x")), "set HF_HOME"),
    Case("a damaged cache", pulling(huggingface_hub.errors.CorruptedCacheException("bad refs")), "bad refs"),
    Case("offline", pulling(huggingface_hub.errors.LocalEntryNotFoundError("x")), "the Hub cannot be reached"),
    Case("every error of huggingface_hub", every(huggingface_hub.errors), "each one line"),
    Case("every error of httpx2", every(httpx2), "each one line"),
    Case("a graph that is text", with_graph(b"hello"), "talker: cannot be compiled for CPU"),
    Case("a graph that is empty", with_graph(b""), "talker: cannot be compiled for CPU"),
    Case("a graph of other operations", with_graph(b'<?xml version="1.0"?><net version="99"/>'), "talker: cannot be"),
    Case("a graph without its weights", without_weights, "a graph is missing"),
    Case("an unknown device", placed(device="TPU"), "there is no device TPU on this machine"),
    Case("a device that is no name", placed(device={"talker": None}), "there is no device None on this machine"),
    Case("an unknown property", placed(properties={"default": {"SPEED": 1}}), "cannot be compiled for CPU"),
    Case("a property in words", placed(properties={"default": {"NUM_STREAMS": "many"}}), "cannot be compiled"),
    Case("properties that are none", placed(properties={"default": None}), "cannot be compiled"),
    Case("a device that fails", speaking(ov.InferRequest, "infer", RuntimeError("a\nCL_OUT_OF_RESOURCES")), "CL_OUT"),
    Case(
        "a device of another type of error",
        speaking(ov.InferRequest, "infer", ov._pyopenvino.GeneralFailure("x")),
        "failed: x",
    ),
    Case(
        "state that cannot be reset",
        speaking(ov.InferRequest, "reset_state", RuntimeError("gone")),
        "talker failed: gone",
    ),
    Case("a voice prompt that is text", prompt(lambda path: path.write_text("hello")), "not a voice prompt"),
    Case("a voice prompt that is empty", prompt(lambda path: path.write_bytes(b"")), "not a voice prompt"),
    Case("a voice prompt that is a folder", prompt(Path.mkdir), "there is no such file"),
    Case("a voice prompt in bfloat16", prompt(bf16), "not a voice prompt"),
    Case(
        "a checkpoint in place of a voice prompt",
        prompt(lambda path: safetensors.numpy.save_file({"w": np.zeros(2, np.float32)}, path)),
        "not a voice prompt of this version",
    ),
]
