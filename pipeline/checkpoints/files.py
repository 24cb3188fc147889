"""The files of a checkpoint: choosing them by name, and refusing the wrong model and damaged files.

No weights are loaded here. That the configurations agree with one another and with the weights is checked once, by
`build`, with the networks of model_src.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.checkpoints.tensors import Config
from pipeline.stage import KINDS, PipelineError

REQUIRED = (
    "config.json",
    "generation_config.json",
    "merges.txt",
    "speech_tokenizer/config.json",
    "speech_tokenizer/preprocessor_config.json",
    "tokenizer_config.json",
    "vocab.json",
)
# In every release, but never read.
OPTIONAL = ("preprocessor_config.json", "speech_tokenizer/configuration.json")
CONFIGURATIONS = ("config.json", "speech_tokenizer/config.json")
WEIGHTS = ("model.safetensors", "speech_tokenizer/model.safetensors")

PICKLES = frozenset((".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"))
OTHER_WEIGHTS = frozenset(
    (".gguf", ".ggml", ".h5", ".msgpack", ".npy", ".npz", ".onnx", ".ot", ".pb", ".safetensors", ".tflite")
)


def select(names: Collection[str], read: Callable[[str], bytes], kind: str | None) -> list[str]:
    """The files of a checkpoint among the names in a repository or folder; text, images and code are not chosen.

    Only the configurations and the indices of sharded weights are read, so a wrong checkpoint is refused before its
    weights are fetched. Raises PipelineError for a missing file, a pickle, a weight file that no configuration
    explains, a name that leads out of the folder, and any model other than Qwen3-TTS 12 Hz of the required kind.

    Args:
        names: relative paths.
        read: returns the content of a file.
        kind: the required tts_model_type; None allows any.
    """
    for name in sorted(names):
        if "\\" in name or not name.isprintable() or any(part in ("", ".", "..") for part in name.split("/")):
            raise PipelineError(f"{name!r} is not a plain path inside the checkpoint; refused")
        if PurePosixPath(name).suffix.lower() in PICKLES:
            raise PipelineError(f"{name}: loading a pickle can run code; convert it to safetensors or remove it")
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise PipelineError(f"not a Qwen3-TTS checkpoint: {', '.join(missing)} missing")
    config, codec = (parse(name, read(name)) for name in CONFIGURATIONS)
    check_identity(config, codec, kind)
    chosen = {*REQUIRED, *(name for name in OPTIONAL if name in names)}
    for weights in WEIGHTS:
        chosen |= weight_files(weights, names, read)
    for name in sorted(set(names) - chosen):
        if PurePosixPath(name).suffix.lower() in OTHER_WEIGHTS:
            raise PipelineError(f"{name}: config.json does not explain this weight file; remove it")
    return sorted(chosen)


def weight_files(weights: str, names: Collection[str], read: Callable[[str], bytes]) -> set[str]:
    """The file `weights` itself, or its index and every shard that the index lists."""
    index = f"{weights}.index.json"
    if index not in names:
        if weights not in names:
            raise PipelineError(f"not a Qwen3-TTS checkpoint: {weights} missing")
        return {weights}
    listed = set(weight_map(index, read(index)).values())
    shards = {PurePosixPath(weights).with_name(shard).as_posix() for shard in listed}
    absent = sorted(shards - set(names))
    if absent:
        raise PipelineError(f"{index} lists {', '.join(absent)}, which is missing; get it or repair the index")
    return {index, *shards}


def weight_map(index: str, content: bytes) -> dict[str, str]:
    """Tensor name to shard, from the index of a sharded weight file."""
    shards = parse(index, content).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise PipelineError(f"{index}: weight_map is missing or empty")
    for shard in shards.values():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise PipelineError(f"{index}: weight_map names {shard!r}, which is not a safetensors file beside it")
    return shards


def parse(name: str, content: bytes) -> Config:
    """The JSON object in a file of this name."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise PipelineError(f"{name} is not JSON ({error}); get the file again") from None
    if not isinstance(value, dict):
        raise PipelineError(f"{name} holds no JSON object; get the file again")
    return value


def check_identity(config: Config, codec: Config, kind: str | None) -> None:
    """Raises PipelineError unless the configurations are those of Qwen3-TTS 12 Hz, of the required kind."""
    claims = (
        ("config.json: model_type", config.get("model_type"), ("qwen3_tts",)),
        ("config.json: tokenizer_type", config.get("tokenizer_type"), ("qwen3_tts_tokenizer_12hz",)),
        ("config.json: tts_model_type", config.get("tts_model_type"), (kind,) if kind else KINDS),
        ("speech_tokenizer/config.json: model_type", codec.get("model_type"), ("qwen3_tts_tokenizer_12hz",)),
    )
    for key, value, known in claims:
        if value not in known:
            raise PipelineError(f"{key} is {value!r}, not {' or '.join(known)}; another checkpoint is needed here")


def check_intact(directory: Path) -> None:
    """Raises PipelineError for a damaged file: JSON that does not parse, weights that do not fit their header or index.

    Args:
        directory: holds exactly the files that `select` chose.
    """
    for path in sorted(directory.rglob("*.json")):
        parse(path.relative_to(directory).as_posix(), path.read_bytes())
    for weights in WEIGHTS:
        index = f"{weights}.index.json"
        shard_of = weight_map(index, (directory / index).read_bytes()) if (directory / index).exists() else {}
        for path in (directory / weights).parent.glob("*.safetensors"):
            name = path.relative_to(directory).as_posix()
            try:
                with safe_open(path, framework="numpy") as file:  # compares its length with its header
                    tensors = set(file.keys())
            except SafetensorError as error:
                raise PipelineError(f"{name} is truncated or damaged ({error}); get the file again") from None
            if shard_of and tensors != {tensor for tensor, shard in shard_of.items() if shard == path.name}:
                raise PipelineError(f"{name}: its tensors are not those that {index} lists for it; get both again")


def digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Hash of a checkpoint's content: of the names of its files and their hashes, as `fingerprint` has them."""
    lines = (f"{entry['sha256']}  {name}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
