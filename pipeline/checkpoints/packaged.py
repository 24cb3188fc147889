"""A checkpoint small enough for a git repository: matrices in 6 bits, rows that say nothing left out.

`voices/common/` holds the tokenizer and the codec of the first voice; `voices/<name>/` what is a voice's own, which may
be another codec. Of voices that one training made, one stores the weights; in their place another has the file
`weights_of.txt` with that one's name, and takes of its weights those that its own config.json lists.

`unpack` makes of all this a checkpoint in the released layout, the same to the bit on every machine, as each of its
numbers is a product that float32 holds exactly.

    python -m pipeline.checkpoints.packaged <checkpoint> voices/<name>

packs one and prints the revision that conf/variant/<name>.yaml must name.
"""

import json
import math
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pipeline.checkpoints.files import CONFIGURATIONS, WEIGHTS, digest, select
from pipeline.checkpoints.synthetic import bfloat16, write_header
from pipeline.checkpoints.tensors import Config, Tensor, model
from pipeline.checkpoints.tokenizer import printable_bytes
from pipeline.stage import PipelineError, errors_for_people, fingerprint, list_files

COMMON = "common"
OWN = ("config.json", "generation_config.json", WEIGHTS[0])
WEIGHTS_OF = "weights_of.txt"  # not a symbolic link: a clone on Windows makes a file of that
DTYPES = dict(zip(WEIGHTS, ("BF16", "F32"), strict=True))  # as in the releases
TEXT_EMBEDDING = "talker.model.text_embedding.weight"
GROUP = 32  # numbers along a row that share a scale
BITS, LARGEST = 6, 31  # of a level; files of an earlier form have 8, each in a byte
SMALL = 4096  # norms, biases and other tensors with fewer numbers are stored as they are
Arrays = dict[str, NDArray]


def pack(checkpoint: Path, packed: Path) -> None:
    """Writes a checkpoint of one file of weights for each model to the folder `packed`, and to `common` beside it what
    no voice there has otherwise.

    Raises PipelineError for a folder that is no such checkpoint.
    """
    names = select(list_files(checkpoint), lambda name: (checkpoint / name).read_bytes(), None)
    if sharded := [name for name in names if name.endswith(".safetensors") and name not in WEIGHTS]:
        raise PipelineError(f"{checkpoint / sharded[0]}: put the weights of a model into one file; these are sharded")
    others = [each for each in packed.parent.glob("*/") if each.name not in (COMMON, packed.name)]
    (packed / WEIGHTS_OF).unlink(missing_ok=True)
    for name in names:
        own, common = packed / name, packed.parent / COMMON / name
        own.parent.mkdir(parents=True, exist_ok=True)
        if name in WEIGHTS:
            save_file(packed_weights(checkpoint, name), own)
        else:
            shutil.copyfile(checkpoint / name, own)
        if name not in OWN:
            if not (others and common.is_file()):
                common.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(own, common)
            if fingerprint(own) == fingerprint(common):
                own.unlink()
    share_weights(packed)
    with suppress(OSError):
        (packed / Path(WEIGHTS[1]).parent).rmdir()  # where all of it is common


def share_weights(packed: Path) -> None:
    """Puts the name of another voice in place of a voice's weights, where that one holds the same and perhaps more."""
    arrays = {name: load_file(home(name, packed)) for name in WEIGHTS}
    for other in sorted(packed.parent.glob(f"*/{WEIGHTS[0]}")):
        if other.parent != packed and all(holds(home(name, other.parent), arrays[name]) for name in WEIGHTS):
            for name in WEIGHTS:
                (packed / name).unlink(missing_ok=True)
            (packed / WEIGHTS_OF).write_text(f"{other.parent.name}\n", encoding="utf-8")
            return


def holds(path: Path, arrays: Arrays) -> bool:
    """Whether a packed weight file has all these arrays, to the bit."""
    with safe_open(path, framework="numpy") as file:
        return arrays.keys() <= set(file.keys()) and all(
            np.array_equal(file.get_tensor(name), array) for name, array in arrays.items()
        )


def unpack(packed: Path, checkpoint: Path) -> None:
    """Writes the checkpoint that was packed to an existing folder.

    Raises PipelineError for an incomplete voice, and for one that takes its weights from a voice without them.
    """
    common = packed.parent / COMMON
    if not common.is_dir():
        raise PipelineError(f"{common} is missing; `git checkout` it")
    for name in [*list_files(common), *OWN]:
        source, path = home(name, packed), checkpoint / name
        if not source.is_file():
            raise PipelineError(f"{source} is missing; `git checkout` it")
        path.parent.mkdir(exist_ok=True)
        if name in WEIGHTS:
            arrays = load_file(source)
            write_weights(listed(arrays, packed) if name in OWN else arrays, path, DTYPES[name])
        else:
            shutil.copyfile(source, path)


def listed(arrays: Arrays, packed: Path) -> Arrays:
    """The parts of the tensors that a voice's config.json lists. Raises PipelineError where a tensor is missing."""
    config, _ = configurations(packed)
    wanted = {tensor.name for tensor in model(config)}
    kept = {key: array for key, array in arrays.items() if key.rpartition(".")[0] in wanted}
    if missing := wanted - {key.rpartition(".")[0] for key in kept}:
        raise PipelineError(
            f"{home(WEIGHTS[0], packed)} lacks {min(missing)}, which {packed / 'config.json'} lists; pack both again"
        )
    return kept


def configurations(packed: Path) -> tuple[Config, Config]:
    """config.json and speech_tokenizer/config.json of a packed checkpoint."""
    own, codec = (json.loads(home(name, packed).read_text(encoding="utf-8")) for name in CONFIGURATIONS)
    return own, codec


def home(name: str, packed: Path) -> Path:
    """Where a file of a checkpoint is kept: with the voice, with the voice whose weights it takes, or in `common`."""
    own, shared, common = packed / name, packed / WEIGHTS_OF, packed.parent / COMMON / name
    if name in WEIGHTS and shared.is_file():
        own = packed.parent / shared.read_text(encoding="utf-8").strip() / name
    return own if name in OWN or own.is_file() else common


def packed_weights(checkpoint: Path, name: str) -> Arrays:
    """The tensors of a weight file of a checkpoint, as they are stored."""
    arrays: Arrays = {}
    with safe_open(checkpoint / name, framework="pt") as file:
        for tensor in sorted(file.keys()):
            values = file.get_tensor(tensor).float().numpy()
            if tensor == TEXT_EMBEDDING:
                values[np.setdiff1d(np.arange(len(values)), sorted(reachable(checkpoint)))] = 0
            arrays |= {f"{tensor}.{part}": array for part, array in packed_tensor(values).items()}
    return arrays


def packed_tensor(values: NDArray[np.float32]) -> Arrays:
    """A tensor [rows, ...] in parts: `whole`, or

    `bits` uint8 [rows kept, bytes], `scales` float16 [rows kept, groups], `shape`, and, where some rows are the same
    number throughout, `kept`, the indices of all other rows, and `constants` [rows].
    """
    if values.ndim < 2 or values.size < SMALL:
        return {"whole": values}
    rows = values.reshape(len(values), -1)
    parts: Arrays = {"shape": np.array(values.shape, np.uint32)}
    constant = rows.min(axis=1) == rows.max(axis=1)
    if constant.any():
        kept = np.flatnonzero(~constant)
        parts |= {"kept": kept.astype(np.uint32), "constants": np.where(constant, rows[:, 0], 0).astype(np.float16)}
        rows = rows[kept]
    groups = grouped(rows)
    largest = np.abs(groups).max(axis=-1)
    scales = (largest / LARGEST).astype(np.float16)
    scales = np.where(scales * np.float32(LARGEST) < largest, np.nextafter(scales, np.float16(np.inf)), scales)
    steps = np.where(scales > 0, scales, np.inf).astype(np.float32)[..., None]
    levels = np.clip(np.rint(groups / steps), -LARGEST, LARGEST).astype(np.int8)
    return parts | {"bits": bits(joined(levels, rows.shape[1])), "scales": scales}


def bits(levels: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Levels [rows, numbers] without the two bits of a byte that they do not need: [rows, bytes]."""
    rows, numbers = levels.shape
    each = np.unpackbits((levels + LARGEST).astype(np.uint8)[..., None], axis=-1)[..., -BITS:]
    return np.packbits(each.reshape(rows, numbers * BITS), axis=-1)


def levels_of(parts: Arrays) -> NDArray[np.int8]:
    """The levels [rows kept, numbers] of a packed tensor."""
    if "levels" in parts:
        return parts["levels"]
    numbers = math.prod(map(int, parts["shape"][1:]))
    rows = len(parts["bits"])
    each = np.unpackbits(parts["bits"], axis=-1, count=numbers * BITS).reshape(rows, numbers, BITS)
    padded = np.pad(each, ((0, 0), (0, 0), (8 - BITS, 0)))
    return np.packbits(padded, axis=-1)[..., 0].astype(np.int8) - np.int8(LARGEST)


def grouped(rows: NDArray) -> NDArray:
    """[rows, numbers] as [rows, groups, GROUP], the last group filled up with zeros."""
    groups = -(-rows.shape[1] // GROUP)
    return np.pad(rows, ((0, 0), (0, groups * GROUP - rows.shape[1]))).reshape(len(rows), groups, GROUP)


def joined(groups: NDArray, numbers: int) -> NDArray:
    """The rows [rows, numbers] that `grouped` was given."""
    rows = groups.reshape(len(groups), groups.shape[1] * GROUP)[:, :numbers]
    return np.ascontiguousarray(rows)  # safetensors would save a view as if it were


def unpacked_tensor(parts: Arrays) -> NDArray[np.float32]:
    """What `packed_tensor` was given, but for the rounding."""
    if "whole" in parts:
        return parts["whole"]
    levels, shape = levels_of(parts), tuple(map(int, parts["shape"]))
    groups = grouped(levels).astype(np.float32) * parts["scales"].astype(np.float32)[..., None]
    rows = joined(groups, levels.shape[1])
    if "kept" in parts:
        every = np.repeat(parts["constants"].astype(np.float32)[:, None], rows.shape[1], axis=1)
        every[parts["kept"]] = rows
        rows = every
    return rows.reshape(shape)


def write_weights(arrays: Arrays, path: Path, dtype: str) -> None:
    """Writes a weight file of the released layout from the arrays of a packed one."""
    tensors: dict[str, Arrays] = {}
    for key, array in arrays.items():
        name, part = key.rsplit(".", 1)
        tensors.setdefault(name, {})[part] = array
    shapes = {name: parts["whole"].shape if "whole" in parts else parts["shape"] for name, parts in tensors.items()}
    listing = [Tensor(name, tuple(map(int, shapes[name])), std=0.0) for name in sorted(tensors)]
    with path.open("wb") as file:
        write_header(file, listing, dtype)
        for tensor in listing:
            numbers = unpacked_tensor(tensors[tensor.name])
            file.write((bfloat16(numbers) if dtype == "BF16" else numbers.astype("<f4")).tobytes())


def reachable(checkpoint: Path) -> set[int]:
    """The ids that the tokenizer of a checkpoint can give: of bytes, of what they merge into, and of added tokens."""
    ids: dict[str, int] = json.loads((checkpoint / "vocab.json").read_text(encoding="utf-8"))
    merges = (checkpoint / "merges.txt").read_text(encoding="utf-8").splitlines()
    tokens = {*printable_bytes(), *(line.replace(" ", "") for line in merges if not line.startswith("#version"))}
    added = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    return {ids[token] for token in tokens if token in ids} | {int(number) for number in added}


def main(checkpoint: Path, packed: Path) -> None:
    """Packs a checkpoint, and prints the size on disk and the revision of what comes out again."""
    pack(checkpoint, packed)
    size = sum(path.stat().st_size for path in packed.parent.rglob("*") if path.is_file())
    with tempfile.TemporaryDirectory() as folder:
        unpack(packed, Path(folder))
        found = digest({name: fingerprint(Path(folder, name)) for name in list_files(Path(folder))})
    print(f"{packed.parent}: {size / 1e6:.1f} MB\nrevision: sha256:{found}")


if __name__ == "__main__":
    with errors_for_people():
        main(*map(Path, sys.argv[1:]))
