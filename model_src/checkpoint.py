"""Loading a checkpoint's tensors into the networks: safetensors only, strict, without copies.

`NETWORKS` holds every difference between the checkpoint's names and ours. Every parameter must be set and every tensor
used, except those in `UNUSED`, which the official code loads but never runs. Networks are built on the meta device and
given the file's own memory-mapped tensors, so bfloat16 weights stay bfloat16 and are paged in as needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .code_predictor import CodePredictor
from .config import CheckpointConfig
from .layers import Embedding
from .speaker_encoder import SpeakerEncoder
from .speech_decoder import SpeechDecoder
from .speech_encoder import SpeechEncoder
from .talker import Talker, TextEmbedding


class CheckpointError(ValueError):
    """Weights that are damaged or do not fit their configuration; the message names the file or the tensors."""


@dataclass(frozen=True)
class Network:
    """How one network is built from the configuration, and where the checkpoint keeps its parameters.

    `names` rewrites the start of a parameter's name into the checkpoint's; the first pattern that matches applies.
    """

    build: Callable[[CheckpointConfig], nn.Module]
    names: Callable[[CheckpointConfig], list[tuple[str, str]]]


def _speaker_encoder(config: CheckpointConfig) -> SpeakerEncoder:
    assert config.speaker_encoder_config is not None, "only base checkpoints have one"
    return SpeakerEncoder(config.speaker_encoder_config)


def _talker_names(_: CheckpointConfig) -> list[tuple[str, str]]:
    return [(r"codec_head\.", "talker.codec_head."), (r"", "talker.model.")]


def _code_predictor_names(_: CheckpointConfig) -> list[tuple[str, str]]:
    root = "talker.code_predictor."
    return [
        (r"projection\.", root + "small_to_mtp_projection."),
        (r"embeddings\.", root + "model.codec_embedding."),
        (r"heads\.", root + "lm_head."),
        (r"", root + "model."),
    ]


def _speech_decoder_names(config: CheckpointConfig) -> list[tuple[str, str]]:
    blocks = len(config.speech_tokenizer.decoder_config.upsample_rates)
    names = [
        (r"semantic\.tables", "decoder.quantizer.rvq_first.vq.layers.{}._codebook.embedding_sum"),
        (r"acoustic\.tables", "decoder.quantizer.rvq_rest.vq.layers.{}._codebook.embedding_sum"),
        (r"semantic\.", "decoder.quantizer.rvq_first."),
        (r"acoustic\.", "decoder.quantizer.rvq_rest."),
        (r"transformer\.", "decoder.pre_transformer."),
        (r"upsamples\.(\d+)\.", r"decoder.upsample.\1.0."),
        (r"convnexts\.(\d+)\.", r"decoder.upsample.\1.1."),
        (r"first_conv\.", "decoder.decoder.0."),
        (r"last_act\.", f"decoder.decoder.{blocks + 1}."),
        (r"last_conv\.", f"decoder.decoder.{blocks + 2}."),
    ]
    for index in range(blocks):
        theirs = f"decoder.decoder.{index + 1}.block."
        names += [(rf"blocks\.{index}\.act\.", theirs + "0."), (rf"blocks\.{index}\.upsample\.", theirs + "1.")]
        names += [(rf"blocks\.{index}\.units\.{unit}\.", f"{theirs}{unit + 2}.") for unit in range(3)]
    return [*names, (r"", "decoder.")]


def _speech_encoder_names(config: CheckpointConfig) -> list[tuple[str, str]]:
    mimi = config.speech_tokenizer.encoder_config
    units, strides = mimi.num_residual_layers, len(mimi.upsampling_ratios)
    seanet, rvq = "encoder.encoder.layers.", "encoder.quantizer.{}_residual_vector_quantizer."
    names = []
    for kind in ("semantic", "acoustic"):
        names += [(rf"{kind}\.tables", rvq.format(kind) + "layers.{}.codebook.embed_sum")]
        names += [(rf"{kind}\.", rvq.format(kind))]
    # SEANet is one list: a convolution; for each stride the units, an ELU, a convolution; an ELU, a convolution.
    names += [(r"first_conv\.", seanet + "0.")]
    for block in range(strides):
        start = 1 + block * (units + 2)
        for unit in range(units):
            ours, theirs = rf"blocks\.{block}\.units\.{unit}\.", f"{seanet}{start + unit}.block."
            names += [(ours + r"conv1\.", theirs + "1."), (ours + r"conv2\.", theirs + "3.")]
        names += [(rf"blocks\.{block}\.downsample\.", f"{seanet}{start + units + 1}.")]
    names += [(r"last_conv\.", f"{seanet}{2 + strides * (units + 2)}.")]
    names += [(r"layers\.(\d+)\.(fc[12])\.", r"encoder.encoder_transformer.layers.\1.mlp.\2.")]
    return [*names, (r"layers\.", "encoder.encoder_transformer.layers."), (r"", "encoder.")]


NETWORKS: dict[str, Network] = {
    "text_embedding": Network(
        lambda config: TextEmbedding(config.talker_config),
        lambda _: [(r"table\.", "talker.model.text_embedding."), (r"", "talker.text_projection.")],
    ),
    "codec_embedding": Network(
        lambda config: Embedding(config.talker_config.vocab_size, config.talker_config.hidden_size),
        lambda _: [(r"", "talker.model.codec_embedding.")],
    ),
    "talker": Network(lambda config: Talker(config.talker_config), _talker_names),
    "code_predictor": Network(lambda config: CodePredictor(config.talker_config), _code_predictor_names),
    "speech_decoder": Network(
        lambda config: SpeechDecoder(config.speech_tokenizer.decoder_config), _speech_decoder_names
    ),
    "speech_encoder": Network(lambda config: SpeechEncoder(config.speech_tokenizer), _speech_encoder_names),
    "speaker_encoder": Network(
        _speaker_encoder,
        lambda _: [(r"", "speaker_encoder.")],
    ),
}

# Tensors that released checkpoints hold and inference never reads: projections into the decoder's codebooks and out of
# the encoder's, the encoder's codebooks beyond those in use, and flags of the codebooks' training.
UNUSED = re.compile(
    r"decoder\.quantizer\.rvq_(first|rest)\.input_proj\.weight"
    r"|encoder\.quantizer\.(semantic|acoustic)_residual_vector_quantizer\.output_proj\.weight"
    r"|encoder\.quantizer\.\w+\.layers\.\d+\.codebook\.(embed_sum|cluster_usage|initialized)"
)
DTYPES = ("BF16", "F16", "F32")
_USAGE_FLOOR = 1e-5  # the official codebooks divide by at least this


class _NoInitialValues(TorchFunctionMode):
    """Leaves new parameters uninitialised: on the meta device, initialising them takes a second, to load a compiler."""

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(function, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


class Checkpoint:
    """A checkpoint folder: its configuration, and its tensors by name.

    The weights are all safetensors files in the folder and in its speech_tokenizer, however they are sharded. Opening
    reads only the configuration and the files' headers. Raises ConfigError and CheckpointError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = CheckpointConfig.load(folder)
        self.names = tuple(n for n in NETWORKS if n != "speaker_encoder" or self.config.speaker_encoder_config)
        self._files: dict[str, safe_open] = {}  # tensor name -> the open file that holds it
        self._paths: dict[str, Path] = {}
        for part in (folder, folder / "speech_tokenizer"):
            for path in sorted(part.glob("*.safetensors")):
                self._open(path)

    def load(self, name: str) -> nn.Module:
        """One network with its weights, for inference. Raises CheckpointError for missing or misshapen tensors."""
        network = self._empty(name)
        sources = {parameter: self.sources(name, parameter, value) for parameter, value in network.state_dict().items()}
        missing, misshapen = self._faults(sources)
        if missing or misshapen:
            raise CheckpointError(f"{self.folder}: {name} does not fit its weights: {_listed(missing, misshapen)}")
        state = {parameter: self._value(parameter, list(found)) for parameter, found in sources.items()}
        network.load_state_dict(state, strict=True, assign=True)
        return network.eval().requires_grad_(False)

    def verify(self) -> None:
        """Check, by the headers alone, that the files hold every tensor that the networks use, in the right shape, and
        no unknown one. Raises CheckpointError.
        """
        sources = {
            f"{name}.{parameter}": self.sources(name, parameter, value)
            for name in self.names
            for parameter, value in self._empty(name).state_dict().items()
        }
        missing, misshapen = self._faults(sources)
        used = {source for found in sources.values() for source in found}
        unknown = [name for name in self._files if name not in used and not UNUSED.fullmatch(name)]
        if missing or misshapen or unknown:
            faults = _listed(missing, misshapen, unknown)
            raise CheckpointError(f"{self.folder}: the weights do not fit config.json: {faults}")

    def tensor(self, name: str) -> Tensor:
        """A tensor in its stored dtype, backed by the mapped file."""
        return self._files[name].get_tensor(name)

    def rows(self, name: str, size: int) -> Iterator[Tensor]:
        """A tensor in pieces of at most `size` rows, none of which stays in memory after use."""
        path, total = self._paths[name], self._files[name].get_slice(name).get_shape()[0]
        for start in range(0, total, size):
            with safe_open(path, framework="pt") as file:  # a mapping of its own, so that its pages go when it closes
                yield file.get_slice(name)[start : start + size]

    def _empty(self, name: str) -> nn.Module:
        with torch.device("meta"), _NoInitialValues():
            return NETWORKS[name].build(self.config)

    def sources(self, network: str, parameter: str, value: Tensor) -> dict[str, list[int]]:
        """The checkpoint's tensors for a parameter and the shape of each: sums and usages for codebook tables."""
        for pattern, theirs in NETWORKS[network].names(self.config):
            if re.match(pattern, parameter):
                name = re.sub("^" + pattern, theirs, parameter, count=1)
                break
        if not parameter.endswith("tables"):
            return {name: list(value.shape)}
        count, codes, width = value.shape
        sums = [name.format(index) for index in range(count)]
        return {source: [codes, width] for source in sums} | {_usage(source): [codes] for source in sums}

    def _faults(self, sources: Mapping[str, Mapping[str, list[int]]]) -> tuple[list[str], list[str]]:
        """Given the sources of each parameter: the missing tensors, and those with the wrong shape."""
        missing, misshapen = [], []
        for name, shape in (pair for found in sources.values() for pair in found.items()):
            if name not in self._files:
                missing.append(name)
            elif (stored := self._files[name].get_slice(name).get_shape()) != shape:
                misshapen.append(f"{name} is {stored}, config.json makes it {shape}")
        return missing, misshapen

    def _value(self, parameter: str, sources: list[str]) -> Tensor:
        """A parameter's tensor. A row of a codebook is the mean of its vectors: stored sum over stored usage."""
        if not parameter.endswith("tables"):
            return self.tensor(sources[0])
        sums = sources[: len(sources) // 2]
        usages = (self.tensor(_usage(source)).clamp(min=_USAGE_FLOOR) for source in sums)
        return torch.stack([self.tensor(rows) / usage[:, None] for rows, usage in zip(sums, usages, strict=True)])

    def _open(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); download it again") from None
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            if name in self._files:
                raise CheckpointError(f"{path}: tensor {name} is also in another file")
            if (dtype := file.get_slice(name).get_dtype()) not in DTYPES:
                raise CheckpointError(f"{path}: tensor {name} is {dtype}, not {' or '.join(DTYPES)}")
            self._files[name], self._paths[name] = file, path


def _usage(sums: str) -> str:
    """The name of a codebook's usages, from that of its sums."""
    return f"{sums.rpartition('.')[0]}.cluster_usage"


def _listed(missing: list[str], misshapen: list[str], unknown: Sequence[str] = ()) -> str:
    """The faults in one line, with at most five names of each kind."""
    parts = []
    for label, names in (("missing", missing), ("unknown", unknown), ("of the wrong shape", misshapen)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            parts.append(f"{label}: {', '.join(names[:5])}{more}")
    return "; ".join(parts)
