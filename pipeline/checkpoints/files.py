"""What a checkpoint folder may hold and whether it is whole: file names, configuration, headers of the weight files.

Nothing here loads a weight. What passes can be loaded by every later stage; what does not is refused with one line
that names the file and the key. Files are chosen by name from a list, whatever else lies beside them.
"""

import json
import re
from collections.abc import Callable, Collection
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.checkpoints import tensors
from pipeline.checkpoints.tensors import Config
from pipeline.stage import PipelineError

REQUIRED = (
    "config.json",
    "generation_config.json",
    "merges.txt",
    "speech_tokenizer/config.json",
    "speech_tokenizer/preprocessor_config.json",
    "tokenizer_config.json",
    "vocab.json",
)
# In every release; nothing here reads them.
OPTIONAL = ("preprocessor_config.json", "speech_tokenizer/configuration.json")
WEIGHTS = ("model.safetensors", "speech_tokenizer/model.safetensors")

PICKLES = frozenset((".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"))
OTHER_WEIGHTS = frozenset(
    (".gguf", ".ggml", ".h5", ".msgpack", ".npy", ".npz", ".onnx", ".ot", ".pb", ".safetensors", ".tflite")
)
# What stands in two places of the two configurations; the last pair only in a base model.
AGREEING = (
    ("talker_config.num_code_groups", "talker_config.code_predictor_config.num_code_groups"),
    ("talker_config.num_code_groups", "decoder_config.num_quantizers"),
    ("talker_config.num_code_groups", "encoder_valid_num_quantizers"),
    ("talker_config.code_predictor_config.vocab_size", "decoder_config.codebook_size"),
    ("encoder_config.codebook_size", "decoder_config.codebook_size"),
    ("talker_config.hidden_size", "speaker_encoder_config.enc_dim"),
)
KINDS = ("base", "custom_voice", "voice_design")
DTYPES = ("BF16", "F16", "F32")
Shapes = dict[str, tuple[int, ...]]


# ---- names ---------------------------------------------------------------------------------------------------------


def select(names: Collection[str], read: Callable[[str], bytes]) -> list[str]:
    """The files of a checkpoint among the names in a repository or folder; `read` returns the content of one.

    Text, images and code beside them are left where they are. Raises PipelineError for a missing file, a pickle, a
    weight file that nothing explains, and a name that leads out of the folder.
    """
    for name in sorted(names):
        refuse_escape(name)
        if PurePosixPath(name).suffix.lower() in PICKLES:
            raise PipelineError(
                f"{name}: a pickle can run code when it is loaded; convert it to safetensors or take it away"
            )
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise PipelineError(f"not a Qwen3-TTS checkpoint: {', '.join(missing)} missing")
    chosen = {*REQUIRED, *(name for name in OPTIONAL if name in names)}
    for weights in WEIGHTS:
        chosen |= weight_files(weights, names, read)
    for name in sorted(set(names) - chosen):
        if PurePosixPath(name).suffix.lower() in OTHER_WEIGHTS:
            raise PipelineError(f"{name}: config.json does not explain this weight file; take it away")
    return sorted(chosen)


def refuse_escape(name: str) -> None:
    """Raises PipelineError for a name that is not a plain relative path."""
    parts = name.split("/")
    if "\\" in name or not name.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise PipelineError(f"{name!r} is not a plain path inside the checkpoint; refused")


def weight_files(weights: str, names: Collection[str], read: Callable[[str], bytes]) -> set[str]:
    """`model.safetensors`, or its index and every shard that the index lists."""
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


# ---- content -------------------------------------------------------------------------------------------------------


def check(directory: Path, kind: str | None = None) -> None:
    """Raises PipelineError unless the folder is a whole Qwen3-TTS 12 Hz checkpoint whose files agree.

    Args:
        directory: holds the files that `select` chose, and no other weight file.
        kind: what tts_model_type must be, where the variant says so.
    """

    def read(name: str) -> Config:
        return parse(name, (directory / name).read_bytes())

    config, codec = read("config.json"), read("speech_tokenizer/config.json")
    check_identity(config, codec, kind)
    listings = (
        expected("config.json", tensors.model, config),
        expected("speech_tokenizer/config.json", tensors.speech_tokenizer, codec),
    )
    check_agreement(config, codec)
    check_added_tokens(config, read("tokenizer_config.json"))
    for name in "generation_config.json", "vocab.json":
        read(name)
    for weights, listing in zip(WEIGHTS, listings, strict=True):
        check_weights(directory, weights, listing)


def check_identity(config: Config, codec: Config, kind: str | None) -> None:
    """Both configurations say what they are, and the kind is the one that the variant names."""
    claims = (
        ("config.json: model_type", config.get("model_type"), ("qwen3_tts",)),
        ("config.json: tokenizer_type", config.get("tokenizer_type"), ("qwen3_tts_tokenizer_12hz",)),
        ("config.json: tts_model_type", config.get("tts_model_type"), (kind,) if kind else KINDS),
        ("speech_tokenizer/config.json: model_type", codec.get("model_type"), ("qwen3_tts_tokenizer_12hz",)),
    )
    for key, value, known in claims:
        if value not in known:
            raise PipelineError(f"{key} is {value!r}, not {' or '.join(known)}; another checkpoint is needed here")


def expected(name: str, listing: Callable[[Config], list[tensors.Tensor]], config: Config) -> Shapes:
    """The shapes that a configuration calls for."""
    try:
        shapes = {tensor.name: tensor.shape for tensor in listing(config)}
    except KeyError as error:
        raise PipelineError(f"{name}: {error.args[0]} is missing") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise PipelineError(f"{name}: a size in it cannot be right ({error})") from None
    for tensor, shape in shapes.items():
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise PipelineError(f"{name}: it makes {tensor} {list(shape)}; no size may be below 1")
    return shapes


def check_agreement(config: Config, codec: Config) -> None:
    """Numbers that stand in more than one place are the same in all of them."""
    both = {**codec, **config}
    pairs = AGREEING if config["tts_model_type"] == "base" else AGREEING[:-1]
    for left, right in pairs:
        a, b = lookup(both, left), lookup(both, right)
        if a != b:
            raise PipelineError(f"config.json and speech_tokenizer/config.json: {left} is {a}, but {right} is {b}")
    decoder = codec["decoder_config"]
    rate, product = codec.get("decode_upsample_rate"), prod([*decoder["upsample_rates"], *decoder["upsampling_ratios"]])
    if rate != product:
        raise PipelineError(
            f"speech_tokenizer/config.json: decode_upsample_rate is {rate}, but the rates of the decoder make {product}"
        )
    check_speakers(config["talker_config"])


def lookup(config: Config, path: str) -> Any:
    """The value at a dotted path."""
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            raise PipelineError(f"config.json or speech_tokenizer/config.json: {path} is missing")
        value = value[key]
    return value


def check_speakers(talker: Config) -> None:
    """Speaker and language ids lie in the codec vocabulary, and a speaker's dialect is a language."""
    languages, size = talker.get("codec_language_id") or {}, talker["vocab_size"]
    for table in "spk_id", "codec_language_id":
        for name, token in (talker.get(table) or {}).items():
            if not isinstance(token, int) or not 0 <= token < size:
                raise PipelineError(f"config.json: talker_config.{table}.{name} is {token!r}, not an id below {size}")
    for speaker, dialect in (talker.get("spk_is_dialect") or {}).items():
        if dialect and dialect not in languages:
            raise PipelineError(
                f"config.json: talker_config.spk_is_dialect.{speaker} is {dialect!r}, which codec_language_id lacks"
            )


def check_added_tokens(config: Config, tokenizer: Config) -> None:
    """The special text ids of config.json are added tokens of the tokenizer."""
    added = tokenizer.get("added_tokens_decoder")
    for key in ("im_start_token_id", "im_end_token_id", "tts_pad_token_id", "tts_bos_token_id", "tts_eos_token_id"):
        if key not in config:
            raise PipelineError(f"config.json: {key} is missing")
        if added and str(config[key]) not in added:
            raise PipelineError(f"config.json: {key} is {config[key]}, which tokenizer_config.json does not add")


def check_weights(directory: Path, weights: str, shapes: Shapes) -> None:
    """The weight file, or its shards together, hold exactly the tensors that the configuration calls for."""
    found: Shapes = {}
    index = directory / f"{weights}.index.json"
    shard_of = weight_map(f"{weights}.index.json", index.read_bytes()) if index.exists() else {}
    files = sorted(set(shard_of.values())) or [PurePosixPath(weights).name]
    for file in files:
        name = PurePosixPath(weights).with_name(file).as_posix()
        for tensor, shape in header(directory, name).items():
            if shard_of and shard_of.get(tensor) != file:
                raise PipelineError(f"{name}: {tensor} is in it, but not in the index; get both files again")
            found[tensor] = shape
    for tensor in sorted(shapes.keys() | found.keys()):
        if tensor not in found:
            raise PipelineError(f"{weights}: tensor {tensor} is missing; config.json calls for it")
        if tensor not in shapes:
            raise PipelineError(f"{weights}: tensor {tensor} is one that config.json does not call for")
        if found[tensor] != shapes[tensor]:
            raise PipelineError(
                f"{weights}: tensor {tensor} is {list(found[tensor])}; config.json makes it {list(shapes[tensor])}"
            )


def header(directory: Path, name: str) -> Shapes:
    """Shapes of the tensors in a safetensors file; its data are only measured, not read."""
    try:
        with safe_open(directory / name, framework="numpy") as file:
            views = {tensor: file.get_slice(tensor) for tensor in file.keys()}  # noqa: SIM118
            dtypes = {tensor: view.get_dtype() for tensor, view in views.items()}
            shapes = {tensor: tuple(view.get_shape()) for tensor, view in views.items()}
    except SafetensorError as error:
        raise PipelineError(f"{name} is truncated or damaged ({error}); get the file again") from None
    for tensor, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise PipelineError(f"{name}: tensor {tensor} is {dtype}, not {' or '.join(DTYPES)}")
    return shapes
