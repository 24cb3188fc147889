"""A checkpoint's configuration, as frozen dataclasses read from its config.json files.

Unknown keys are ignored (a released file holds dozens that do not describe the network). These are refused, with the
key's full name: a missing key without a default, a value of the wrong type, values that contradict one another, and a
value of a `FIXED` key that the official code supports and these networks, like all releases, do not. Defaults are those
of the official configuration classes, for keys that released files leave out.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar


class ConfigError(ValueError):
    """A configuration that these networks cannot follow; the message names the key."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What every decoder-only transformer here shares. Sizes in features, `sliding_window` in positions."""

    FIXED: ClassVar[dict[str, Any]] = {"hidden_act": "silu", "attention_bias": False}

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float

    def check(self, where: str) -> None:
        _positive(self, where)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{where}: num_attention_heads ({self.num_attention_heads}) is no multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ConfigError(f"{where}.head_dim ({self.head_dim}) must be even for rotary positions")


@dataclass(frozen=True, kw_only=True)
class CodePredictorConfig(TransformerConfig):
    FIXED = TransformerConfig.FIXED | {"use_sliding_window": False}

    vocab_size: int = 2048
    num_code_groups: int = 16
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0


@dataclass(frozen=True, kw_only=True)
class TalkerConfig(TransformerConfig):
    FIXED = CodePredictorConfig.FIXED

    code_predictor_config: CodePredictorConfig
    text_hidden_size: int
    text_vocab_size: int
    vocab_size: int
    num_code_groups: int = 16
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    spk_id: dict[str, int] | None = None
    spk_is_dialect: dict[str, Any] | None = None  # of each speaker: False, or a key of codec_language_id
    codec_language_id: dict[str, int] | None = None

    def check(self, where: str) -> None:
        super().check(where)
        for table in ("spk_id", "codec_language_id"):
            for name, code in (getattr(self, table) or {}).items():
                if not 0 <= code < self.vocab_size:
                    raise ConfigError(f"{where}.{table}.{name} is {code}, not an id below {self.vocab_size}")
        for speaker, dialect in (self.spk_is_dialect or {}).items():
            if dialect and dialect not in (self.codec_language_id or {}):
                raise ConfigError(f"{where}.spk_is_dialect.{speaker} is {dialect!r}, which codec_language_id lacks")


@dataclass(frozen=True, kw_only=True)
class SpeakerEncoderConfig:
    enc_dim: int
    sample_rate: int = 24_000
    mel_dim: int = 128
    enc_channels: tuple[int, ...] = (512, 512, 512, 512, 1536)
    enc_kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    enc_dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    enc_attention_channels: int = 128
    enc_res2net_scale: int = 8
    enc_se_channels: int = 128

    def check(self, where: str) -> None:
        _positive(self, where)
        if not len(self.enc_channels) == len(self.enc_kernel_sizes) == len(self.enc_dilations):
            raise ConfigError(f"{where}: enc_channels, enc_kernel_sizes and enc_dilations differ in length")


@dataclass(frozen=True, kw_only=True)
class SpeechDecoderConfig(TransformerConfig):
    codebook_size: int
    codebook_dim: int
    num_quantizers: int
    latent_dim: int
    decoder_dim: int
    sliding_window: int
    upsample_rates: tuple[int, ...]
    upsampling_ratios: tuple[int, ...]
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0

    @property
    def samples_per_frame(self) -> int:
        return math.prod(self.upsample_rates) * math.prod(self.upsampling_ratios)


@dataclass(frozen=True, kw_only=True)
class SpeechEncoderConfig(TransformerConfig):
    """Mimi's encoder. `upsampling_ratios` are the strides in reverse (the decoder's order, as Mimi states them)."""

    FIXED: ClassVar[dict[str, Any]] = {
        "hidden_act": "gelu",
        "attention_bias": False,
        "use_causal_conv": True,
        "use_conv_shortcut": False,
        "pad_mode": "constant",
    }

    audio_channels: int = 1
    num_filters: int = 64
    kernel_size: int = 7
    last_kernel_size: int = 3
    residual_kernel_size: int = 3
    num_residual_layers: int = 1
    dilation_growth_rate: int = 2
    compress: int = 2
    upsampling_ratios: tuple[int, ...] = (8, 6, 5, 4)
    codebook_size: int = 2048
    codebook_dim: int = 256
    vector_quantization_hidden_dimension: int = 256
    num_quantizers: int = 32
    num_semantic_quantizers: int = 1
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0


@dataclass(frozen=True, kw_only=True)
class SpeechTokenizerConfig:
    """speech_tokenizer/config.json. Rates in Hz, `*_rate` of coding in samples a frame."""

    encoder_config: SpeechEncoderConfig
    decoder_config: SpeechDecoderConfig
    encoder_valid_num_quantizers: int = 16
    input_sample_rate: int = 24_000
    output_sample_rate: int = 24_000
    decode_upsample_rate: int = 1920
    encode_downsample_rate: int = 1920

    def check(self, where: str) -> None:
        _positive(self, where)
        if self.decoder_config.samples_per_frame != self.decode_upsample_rate:
            raise ConfigError(
                f"{where}: decode_upsample_rate is {self.decode_upsample_rate}, but decoder_config's rates multiply "
                f"to {self.decoder_config.samples_per_frame}"
            )
        if self.encoder_valid_num_quantizers > self.encoder_config.num_quantizers:
            raise ConfigError(f"{where}: encoder_valid_num_quantizers exceeds encoder_config.num_quantizers")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """config.json and speech_tokenizer/config.json of one checkpoint."""

    EQUAL: ClassVar = (  # keys that describe the same number
        (
            "talker_config.num_code_groups",
            "talker_config.code_predictor_config.num_code_groups",
            "speech_tokenizer.decoder_config.num_quantizers",
            "speech_tokenizer.encoder_valid_num_quantizers",
        ),
        (
            "talker_config.code_predictor_config.vocab_size",
            "speech_tokenizer.decoder_config.codebook_size",
            "speech_tokenizer.encoder_config.codebook_size",
        ),
    )

    tts_model_type: str
    talker_config: TalkerConfig
    speech_tokenizer: SpeechTokenizerConfig
    speaker_encoder_config: SpeakerEncoderConfig | None = None
    # Text ids that prompts are made of; the tokenizer must add them.
    im_start_token_id: int
    im_end_token_id: int
    tts_pad_token_id: int
    tts_bos_token_id: int
    tts_eos_token_id: int

    def check(self, where: str) -> None:
        for first, *others in self.EQUAL:
            expected = attrgetter(first)(self)
            for key in others:
                if (value := attrgetter(key)(self)) != expected:
                    raise ConfigError(f"{where}: {first} is {expected}, but {key} is {value}")
        speaker = self.speaker_encoder_config
        if (speaker is not None) != (self.tts_model_type == "base"):
            raise ConfigError(f"{where}: speaker_encoder_config belongs to base checkpoints, and only to them")
        if speaker is not None and speaker.enc_dim != self.talker_config.hidden_size:
            raise ConfigError(
                f"{where}: speaker_encoder_config.enc_dim ({speaker.enc_dim}) differs from talker_config.hidden_size "
                f"({self.talker_config.hidden_size})"
            )

    @classmethod
    def load(cls, checkpoint: Path) -> CheckpointConfig:
        """Read a checkpoint folder's two config.json files and check them. Raises ConfigError."""
        main = _read(checkpoint / "config.json")
        if main.get("tts_model_type") != "base":
            main.pop("speaker_encoder_config", None)  # the official class writes a default one into every file
        main["speech_tokenizer"] = _read(checkpoint / "speech_tokenizer" / "config.json")
        config: CheckpointConfig = _build(cls, main, "config.json")
        added = _read(checkpoint / "tokenizer_config.json").get("added_tokens_decoder")
        for field in dataclasses.fields(cls):
            value = getattr(config, field.name)
            if added and field.name.endswith("_token_id") and str(value) not in added:
                raise ConfigError(f"config.json.{field.name} is {value}, which tokenizer_config.json does not add")
        return config


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return data


def _build(cls: type, data: Any, where: str) -> Any:
    """An instance of dataclass `cls` from a parsed JSON object, its nested dataclasses included."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is not an object")
    for key, only in getattr(cls, "FIXED", {}).items():
        if data.get(key, only) != only:
            raise ConfigError(f"{where}.{key} is {data[key]!r}; only {only!r} is supported")
    types = typing.get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cls):
        if field.name in data:
            values[field.name] = _convert(types[field.name], data[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING:
            raise ConfigError(f"{where}.{field.name} is missing")
    config = cls(**values)
    config.check(where)
    return config


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: int, float, str, Any, tuple[int, ...], dict[str, ...] or a dataclass, each perhaps None."""
    options = typing.get_args(kind)
    if kind is Any:
        return value
    if type(None) in options:
        return None if value is None else _convert(options[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_convert(options[0], item, where) for item in value)
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        return {key: _convert(options[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{where} is {value!r}, not {getattr(kind, '__name__', kind)}")
    return value


def _positive(config: Any, where: str) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, int | float) and not 0 < number < math.inf for number in numbers):
            raise ConfigError(f"{where}.{field.name} is {value}; it must be above 0 and finite")
