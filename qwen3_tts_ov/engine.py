"""A model's compiled graphs, each for its device, and the sessions that run them."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import platformdirs
from numpy.typing import NDArray

from . import memory, names
from .batching import Batch, Seat
from .errors import DeviceError, RequestError, boundary
from .fixed_session import FixedSession
from .home import some_home
from .model import Model
from .session import Codes, Floats, Heard, Session, infer, reason

if TYPE_CHECKING:
    import openvino as ov

DEFAULT = "default"  # in a mapping by component: all components not named
_ENCODERS = ("speech_encoder", "speaker_encoder")
_TABLES = ("text_embedding", "codec_embedding", "residual_code_embedding")
# Virtual devices choose among the real ones, so their names are not looked up.
_VIRTUAL = ("AUTO", "HETERO", "MULTI", "BATCH")
_POSITIONS = 2048  # of the talker's cache for each slot: a piece of half a minute with its prompt, and room to spare
_MEMORY_SHARE = 0.5  # of the memory available, that the cache may take
_STREAMS = 4  # speech decoders of a batch that run side by side
_CORES_FOR_STREAMS = 16  # from so many on, a voice that speaks alone loses nothing by that

_starting = threading.Lock()  # held while OpenVINO is first used

MakeSession: TypeAlias = "Callable[[Mapping[str, ov.InferRequest], Collection[Path], Heard], Session]"


def user_cache() -> Path | None:
    """This package's folder in the user's cache; None for a user without a home, and where it cannot be written."""
    try:
        folder = platformdirs.user_cache_path("qwen3-tts-ov", appauthor=False)
    except RuntimeError:
        return None
    return folder if folder.is_absolute() and _writable(folder) else None  # older platformdirs begin with "~"


def devices() -> dict[str, str]:
    """OpenVINO's devices on this machine and their full names. Raises DeviceError."""
    core = _core()
    with boundary(DeviceError, "OpenVINO cannot list the devices", reason):
        return {name: core.get_property(name, "FULL_DEVICE_NAME") for name in core.available_devices}


def describe(device: str) -> dict[str, str | None]:
    """Full name and driver of a device and the build of its plugin; None for what it has not. Raises DeviceError."""
    core = _core()
    with boundary(DeviceError, f"{device}: OpenVINO cannot describe it", reason):
        plugin = next(iter(core.get_versions(device).values())).build_number
        names = [name for name in core.available_devices if device in (name, _base(name))]
        if not names:  # one that is reached through another, as an NPU's plugin can be tried on the CPU
            return {"full_name": None, "driver": None, "plugin": plugin}
        name = names[0]  # of several of a kind, OpenVINO takes the first
        keys = [key for key in core.get_property(name, "SUPPORTED_PROPERTIES") if key.endswith("DRIVER_VERSION")]
        driver = str(core.get_property(name, keys[0])) if keys else None
        return {"full_name": core.get_property(name, "FULL_DEVICE_NAME"), "driver": driver, "plugin": plugin}


@lru_cache(maxsize=1)
def slow_bf16() -> bool:
    """Whether f32 is faster here than bf16, which OpenVINO would take because the processor has instructions for it.

    So it is on an Intel Xeon whose AMX is missing or hidden by a virtual machine: a frame of the 0.6B's speech decoder
    takes 37.8 ms in bf16 and 26.7 in f32 (median, 2 cores). An AMD EPYC takes half as long in bf16 as in f32.
    """
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return False
    return {"GenuineIntel", "avx512_bf16"} <= words and "amx_bf16" not in words


def why_alone(model: Model, device: str) -> str:
    """Why requests cannot share passes of a model's talker on this device; empty if they can."""
    if model.sizes is not None:
        return "the talker's graph of fixed shapes holds one sequence"
    if _base(device) != "CPU":
        return f"the talker runs on {device}, and only the CPU's paged attention has been tried"
    try:
        from openvino._offline_transformations import paged_attention_transformation  # noqa: F401
    except ImportError:
        return "this OpenVINO has no paged attention for Python"
    return ""


class Engine:
    """Compiles each graph for its device and hands out sessions. Safe to share between threads.

    `device` is one for all components or a mapping by component; `properties` maps a component to compile properties,
    which take precedence over the model's own recommendation for that device. The key `default` stands for all
    components not named. Encoders are compiled when first used: only cloning needs them.

    `slots` above 1 lets so many requests speak at a time in one pass over the weights; `batch` is then their
    scheduler. It is None for one slot, and where the talker's device or OpenVINO has no paged attention (`why_alone`).

    Raises DeviceError for a device or property that OpenVINO rejects, RequestError for an unknown component.
    """

    def __init__(
        self,
        model: Model,
        device: str | Mapping[str, str],
        properties: Mapping[str, Mapping[str, Any]] | None,
        cache_dir: str | os.PathLike[str] | Literal[False] | None,
        slots: int = 1,
    ) -> None:
        self.model = model
        self.compile_seconds: dict[str, float] = {}
        self.compiled_for: dict[str, str] = {}  # the device of each component
        self._devices = {DEFAULT: device} if isinstance(device, str) else {DEFAULT: "CPU", **device}
        self._properties = properties or {}
        for name in (*self._devices, *self._properties):
            if name not in (DEFAULT, *model.graphs):
                near = names.near(name, model.graphs)
                raise RequestError(f"unknown component {name!r}{near}; this model has: {', '.join(model.graphs)}")
        self._core = _core()
        self._cache = _cache_properties(cache_dir, model.cache_key)
        weights = {name: xml.with_suffix(".bin").resolve() for name, xml in model.graphs.items()}
        self._mapped = [*weights.values(), *(Path(folder).resolve() for folder in self._cache.values())]
        self._compiled: dict[str, ov.CompiledModel] = {}
        self._lock = threading.Lock()
        self.session_class = Session if model.sizes is None else FixedSession
        self._session: MakeSession = self.session_class
        self.why_alone = why_alone(model, self._place("talker")[0]) if slots > 1 else "one slot"
        self._free: list[Session] = []
        self._heard = Heard()
        # The largest first: a graph is in memory twice while it is compiled.
        with boundary(DeviceError, f"{model.name}: a graph is missing"):
            sizes = {name: path.stat().st_size for name, path in weights.items()}
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            if name not in _ENCODERS:
                self._compile(name)
        self.batch = None if self.why_alone else self._batch(slots)

    def using(self, session: MakeSession) -> Engine:
        """The same compiled graphs, run through sessions of another class: `session` is a subclass of Session."""
        other = copy.copy(self)
        other._session, other._free = session, []
        return other

    @contextmanager
    def session(self, positions: int = 1, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Session]:
        """A session for one request. Sessions are reused: there are as many as requests that ran at the same time.

        In a batch, waits until a slot and the cache for `positions` are free. Raises RequestError if they can never be,
        Cancelled when `cancelled` ends the wait.
        """
        if self.batch is None:
            with self._reused() as session:
                yield session
        else:
            with self.batch.admitted(positions, cancelled), self._reused() as session:
                yield session

    @contextmanager
    def _reused(self) -> Iterator[Session]:
        with self._lock:
            free = self._free.pop() if self._free else None
        session = free or self._session(self._requests(), self._mapped, self._heard)
        try:
            yield session
        finally:
            session.reset()
            if free:
                memory.trim()
            else:  # the largest chunks ran after the components' first calls, which had released once
                memory.release(self._mapped)
            with self._lock:
                self._free.append(session)

    def property(self, name: str, key: str) -> Any:
        """The value of an OpenVINO property of a compiled component; None if its device has no such property."""
        try:
            return self._compiled[name].get_property(key)
        except Exception:  # whatever the plugin of that device raises
            return None

    def encode(self, audio: Floats) -> Codes:
        """Codes [frames, code groups] of 24 kHz audio [samples]."""
        return self._encode("speech_encoder", audio, "codes")

    def x_vector(self, audio: Floats) -> Floats:
        """The speaker vector [talker width] of 24 kHz audio [samples]."""
        return self._encode("speaker_encoder", audio, "embedding")

    def _encode(self, name: str, audio: Floats, output: str) -> NDArray[Any]:
        with self._lock:
            self._compile(name)
        found = infer(name, self._request(name), {"audio": audio[None]})[output][0].copy()
        memory.release(self._mapped)
        return found

    def _requests(self) -> dict[str, Any]:
        """A session's infer requests by component; in a batch, stand-ins for those that are shared."""
        shared = {} if self.batch is None else Seat(self.batch, self._request("speech_decoder")).requests
        names = (name for name in self.model.graphs if name not in _ENCODERS)
        return {name: shared.get(name) or self._request(name) for name in names}

    def _batch(self, slots: int) -> Batch:
        predictors = {1: self._request("code_predictor")}
        while max(predictors) < slots:
            size = 2 * max(predictors)
            name = f"code_predictor of {size}"
            self._compile("code_predictor", name, size)
            predictors[size] = self._request(name)
        talker = self._request("talker")
        # Only what is used takes memory, so that one request may have all positions of the checkpoint.
        positions = max(slots * _POSITIONS, self.model.config["talker_config"]["max_position_embeddings"])
        if (available := memory.available_bytes()) is not None:
            positions = min(positions, int(_MEMORY_SHARE * available) // _cache_bytes(talker))
        streams = int(self.property("speech_decoder", "NUM_STREAMS") or 1)
        return Batch(slots, talker, predictors, positions, infer, streams)

    def _request(self, name: str) -> ov.InferRequest:
        with boundary(DeviceError, f"{name} failed", reason):
            return self._compiled[name].create_infer_request()

    def _compile(self, name: str, kept_as: str = "", size: int = 1) -> None:
        """Compiles a component, the code predictor for a batch of `size`."""
        if (kept_as := kept_as or name) in self._compiled:
            return
        device, recommended, default = self._place(name)
        start = time.perf_counter()
        with boundary(DeviceError, f"{name}: cannot be compiled for {device}", reason), memory.mapping_lock:
            given = {**default, **self._properties.get(name, {})}
            # The NPU plugin's cache does not tell graphs apart by their properties: it would restore one without them.
            cached = self._gains_by_cache(name) and not (given and _base(device) == "NPU")
            precision = {"INFERENCE_PRECISION_HINT": "f32"} if _base(device) == "CPU" and slow_bf16() else {}
            cache = self._cache if cached else {}
            streams = self._streams(device) if name == "speech_decoder" else {}
            chosen = {"PERFORMANCE_HINT": "LATENCY", **precision, **cache, **streams, **recommended, **given}
            # With NPUW_DEVICES, OpenVINO's NPU plugin runs a graph on other devices: there need not be an NPU.
            self._require(name, str(chosen.get("NPUW_DEVICES", device)))
            if _base(device) == "NPU" and self.model.sizes is None:
                raise DeviceError(f"{name}: an NPU takes no graph of a native bundle; load one of the npu layout")
            xml = self.model.graphs[name]
            graph: ov.Model | Path = xml
            if name == "code_predictor":
                graph = self._of_batch(xml, size)
            elif name == "talker" and not self.why_alone:
                graph = self._paged(xml)
                if "KV_CACHE_PRECISION" not in given and self._in_bf16(chosen):
                    chosen["KV_CACHE_PRECISION"] = "bf16"  # attention in bf16 takes no cache in f32
            self._compiled[kept_as] = self._compile_model(graph, device, chosen)
        self.compile_seconds[kept_as], self.compiled_for[name] = time.perf_counter() - start, device

    def _in_bf16(self, properties: Mapping[str, Any]) -> bool:
        """Whether the CPU computes in bf16: where it cannot, it takes f32."""
        asked = str(properties.get("INFERENCE_PRECISION_HINT")) == "bf16"
        return asked and "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def _streams(self, device: str) -> dict[str, int]:
        """The property that lets speech decoders of a batch run side by side, where there are cores for it."""
        if self.why_alone or _base(device) != "CPU":
            return {}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return {"NUM_STREAMS": _STREAMS} if cores >= _CORES_FOR_STREAMS else {}

    def _place(self, name: str) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
        """A component's device, and the properties for it: recommended, and given for all components.

        Where the model recommends another device for a component than is asked for all, the component is compiled for
        that one, and the properties given for all components do not concern it.
        """
        device, default = str(self._devices.get(name, self._devices[DEFAULT])), self._properties.get(DEFAULT, {})
        recommended = self.model.placement.get(_base(device), {}).get(name, {})
        if isinstance(recommended, str):
            if name in self._devices:
                return device, {}, default
            device, default = recommended, {}
            recommended = self.model.placement.get(_base(device), {}).get(name, {})
        return device, recommended, default

    def _require(self, name: str, devices: str) -> None:
        """Raises DeviceError unless this machine has the devices, joined by commas, that a component is to run on."""
        present = self._core.available_devices
        for device in devices.split(","):
            if _base(device) not in _VIRTUAL and not any(_base(found) == _base(device) for found in present):
                known = ", ".join(present)
                raise DeviceError(f"{name}: there is no device {device} on this machine; it has: {known}")

    def _compile_model(self, graph: Path | ov.Model, device: str, properties: dict[str, Any]) -> ov.CompiledModel:
        try:
            return self._core.compile_model(graph, device, properties)
        except RuntimeError as error:
            if not self._cache or self._cache["CACHE_DIR"] not in str(error):
                raise
            # Two processes that write one file of the cache can remove it under each other.
            return self._core.compile_model(graph, device, properties | {"CACHE_DIR": ""})

    def _gains_by_cache(self, name: str) -> bool:
        """Whether OpenVINO's cache, which holds a copy of the weights, makes the next start of a component faster.

        A table has nothing to compile. The CPU plugin's cache restores a 16-bit talker in 32 bits: it takes twice the
        memory, 1.5 times as long per step and longer to start. (CACHE_MODE OPTIMIZE_SIZE leaves the weights out, but
        the plugin of 2026.4 then restores a talker without outputs.)
        """
        if name == "talker" and not self.why_alone:
            return False
        return name not in _TABLES and (name != "talker" or name in self.model.integer_weights)

    def _of_batch(self, xml: Path, size: int) -> ov.Model | Path:
        """A graph for one batch size: all shapes are then static, which takes a fifth off the CPU plugin's time.

        A stateful graph gains nothing, as the shapes of its caches stay dynamic. The graph is kept beside the compiled
        ones: OpenVINO knows a file by its name and date, but must read and hash a graph in memory, which takes longer
        than restoring the compiled one.
        """
        import openvino as ov

        kept = Path(self._cache["CACHE_DIR"], f"{xml.stem}-1.xml") if self._cache and size == 1 else None
        if kept and kept.is_file():
            return kept
        graph = self._core.read_model(xml)
        batched = {
            port: ov.PartialShape([size, *port.partial_shape[1:]])
            for port in graph.inputs
            if port.partial_shape[0].is_dynamic
        }
        graph.reshape(batched)
        return kept if kept and _keep(graph, kept) else graph

    def _paged(self, xml: Path) -> ov.Model:
        """The talker with a cache in blocks, for many sequences at a time."""
        from openvino._offline_transformations import paged_attention_transformation

        graph = self._core.read_model(xml)
        paged_attention_transformation(graph)
        return graph


def _base(device: str) -> str:
    """A device's kind: `GPU` for `GPU.0`, `HETERO` for `HETERO:GPU,CPU`."""
    return device.partition(":")[0].partition(".")[0]


def _core() -> ov.Core:
    with boundary(DeviceError, "OpenVINO does not start", reason, "install it again"), some_home(), _starting:
        import openvino as ov

        # OpenVINO's binding looks numpy up when an array is first used. Two threads that do so at once can wait for
        # each other forever: one holds the interpreter's lock, the other the binding's.
        _ = ov.Tensor(np.zeros(1, np.float32)).data
        return ov.Core()


def _cache_bytes(talker: ov.InferRequest) -> int:
    """The bytes of one position in a paged talker's cache."""
    total = 0
    for port in talker.get_compiled_model().inputs:
        if "_cache." in port.any_name:
            heads, _, size = (length.get_length() for length in list(port.partial_shape)[1:])
            total += heads * size * port.element_type.size
    return total


def _cache_properties(cache_dir: str | os.PathLike[str] | Literal[False] | None, key: str | None) -> dict[str, str]:
    """A model's own cache. OpenVINO tells graphs apart by path and date, not by their weights; the key does that."""
    if cache_dir is False or key is None:
        return {}
    cache = user_cache()
    base = Path(cache_dir) if cache_dir else cache and cache / "models"
    folder = base and base / key
    if folder is None or not _writable(folder):
        logging.getLogger(__name__).warning(
            "%s: cannot keep a model cache there; every start will be slow (choose a folder with cache_dir, or set "
            "XDG_CACHE_HOME)",
            folder or "the user's cache",
        )
        return {}
    return {"CACHE_DIR": str(folder)}


def _keep(graph: ov.Model, xml: Path) -> bool:
    """Writes a graph as IR, whole or not at all; returns whether it could."""
    import openvino as ov

    try:
        with tempfile.TemporaryDirectory(dir=xml.parent) as folder:
            written = Path(folder, xml.name)
            ov.save_model(graph, written, compress_to_fp16=False)
            for part in (written.with_suffix(".bin"), written):  # the .xml last: it says that both are there
                part.replace(xml.with_name(part.name))
    except Exception:  # a full disk: whatever OpenVINO raises
        return False
    return True


def _writable(folder: Path) -> bool:
    """Whether files can be written in a folder, which is made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
