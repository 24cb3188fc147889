"""Checkpoints with random weights in the layout of the released repositories, of any size, from a seed.

They stand in for the real ones without a download: in the tests, in the default pipeline, and at full size in
measurements of memory and speed. Their speech is noise, but no later stage treats them as a special case.

The numbers are the same on every platform and with every library version: the bits come from Philox, whose stream
numpy guarantees, and become a bell curve by integer sums and two float32 operations. Each tensor has a stream of its
own, keyed by seed and name, so neither the order nor the other tensors matter.
"""

import hashlib
import json
import shutil
import struct
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.checkpoints import tensors, tokenizer
from pipeline.checkpoints.tensors import Config, Tensor
from pipeline.stage import PipelineError

DATA = Path(__file__).parent / "data"
RELEASE = DATA / "release"
CHUNK = 1 << 22  # numbers made at a time; bounds the memory
BYTES = {"BF16": 2, "F32": 4}


def configurations(size: str, kind: str, config: Config, speech_tokenizer: Config) -> tuple[Config, Config]:
    """config.json and speech_tokenizer/config.json of a release, with a variant's own differences on top.

    `size` is "0.6b" or "1.7b"; `kind` is "base", "custom_voice" or "voice_design". Raises PipelineError for any other.
    """
    differences = json.loads((DATA / "differences.json").read_text())
    released = json.loads((RELEASE / "config.json").read_text())
    codec = json.loads((RELEASE / "speech_tokenizer/config.json").read_text())
    for axis, choice in ("size", size), ("kind", kind):
        if choice not in differences[axis]:
            raise PipelineError(f"variant.{axis} is {choice!r}; known: {', '.join(differences[axis])}")
        released = merge(released, differences[axis][choice])
    if kind != "base":
        del released["speaker_encoder_config"]
    return merge(released, config), merge(codec, speech_tokenizer)


def merge(base: Config, differences: Config) -> Config:
    """`base` with the differences laid over it, object by object; lists and numbers are replaced."""
    merged = dict(base)
    for key, value in differences.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both else value
    return merged


def write(directory: Path, config: Config, speech_tokenizer: Config, seed: int) -> None:
    """Writes a whole checkpoint: every file of a released repository that inference reads."""
    shutil.copytree(RELEASE, directory, copy_function=shutil.copyfile, dirs_exist_ok=True)
    tokenizer.write(directory)
    for name, text in ("config.json", config), ("speech_tokenizer/config.json", speech_tokenizer):
        (directory / name).write_text(json.dumps(text, indent=2))
    write_weights(directory / "model.safetensors", tensors.model(config), "BF16", seed)
    codec = directory / "speech_tokenizer" / "model.safetensors"
    write_weights(codec, tensors.speech_tokenizer(speech_tokenizer), "F32", seed)


def size(config: Config, speech_tokenizer: Config) -> int:
    """About how many bytes `write` will write."""
    main = sum(t.elements for t in tensors.model(config)) * BYTES["BF16"]
    codec = sum(t.elements for t in tensors.speech_tokenizer(speech_tokenizer)) * BYTES["F32"]
    return main + codec + (8 << 20)  # headers and tokenizer


def write_weights(path: Path, listing: list[Tensor], dtype: str, seed: int) -> None:
    """Writes a safetensors file one tensor at a time: the header first, since all shapes are known."""
    listing = sorted(listing, key=lambda tensor: tensor.name)
    with path.open("wb") as file:
        write_header(file, listing, dtype)
        for tensor in listing:
            for numbers in random_numbers(tensor, seed):
                file.write((bfloat16(numbers) if dtype == "BF16" else numbers.astype("<f4")).tobytes())


def write_header(file: BinaryIO, listing: list[Tensor], dtype: str) -> None:
    """Length, then JSON with the place of each tensor, padded so that the data start at a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in listing:
        start, end = end, end + tensor.elements * BYTES[dtype]
        header[tensor.name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


def random_numbers(tensor: Tensor, seed: int) -> Iterator[np.ndarray]:
    """The numbers of a tensor in row-major order, float32, in chunks.

    Each is the sum of four uniform 16-bit integers, shifted and scaled to mean 0 and variance 1: a bell curve that
    ends at 3.46. It is exact everywhere; a true normal distribution would depend on the platform's logarithm.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}:{tensor.name}".encode()).digest()[:16], "little")
    bits = np.random.Philox(key=key)
    unit = 1 / sqrt(4 * (2**32 - 1) / 12)  # a uniform integer below n has variance (n ** 2 - 1) / 12
    scale, mean = np.float32(tensor.std * unit), np.float32(tensor.mean)
    for start in range(0, tensor.elements, CHUNK):
        words = bits.random_raw(min(CHUNK, tensor.elements - start))
        # Two sums of two 16-bit fields side by side, then the sum of the two.
        pairs = (words & np.uint64(0x0000FFFF0000FFFF)) + (words >> np.uint64(16) & np.uint64(0x0000FFFF0000FFFF))
        total = (pairs & np.uint64(0x3FFFF)) + (pairs >> np.uint64(32))
        yield (total.astype(np.int32) - 2 * 0xFFFF).astype(np.float32) * scale + mean


def bfloat16(numbers: np.ndarray) -> np.ndarray:
    """The upper halves of finite float32 numbers, rounded to nearest, ties to even, as little-endian uint16."""
    bits = numbers.view(np.uint32)
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype("<u2")
