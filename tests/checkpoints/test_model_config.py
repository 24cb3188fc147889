"""Configurations: released ones are read, unknown keys are ignored, impossible values are refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_src.config import CheckpointConfig, ConfigError
from pipeline.checkpoints import synthetic

RELEASES = [
    ("0.6b", "base"), ("0.6b", "custom_voice"), ("1.7b", "base"), ("1.7b", "custom_voice"), ("1.7b", "voice_design")
]  # fmt: skip


def write(folder: Path, config: dict[str, Any], codec: dict[str, Any]) -> Path:
    (folder / "speech_tokenizer").mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "speech_tokenizer" / "config.json").write_text(json.dumps(codec))
    shutil.copy(synthetic.RELEASE / "tokenizer_config.json", folder)
    return folder


@pytest.mark.parametrize(("size", "kind"), RELEASES)
def test_every_released_configuration_is_read(tmp_path: Path, size: str, kind: str):
    config = CheckpointConfig.load(write(tmp_path, *synthetic.configurations(size, kind, {}, {})))
    assert config.tts_model_type == kind
    assert config.talker_config.hidden_size == {"0.6b": 1024, "1.7b": 2048}[size]
    assert config.talker_config.code_predictor_config.hidden_size == 1024
    assert (config.speaker_encoder_config is not None) == (kind == "base")
    assert config.speech_tokenizer.decoder_config.samples_per_frame == 1920


def test_defaults_are_the_official_ones_and_given_values_override_them(tmp_path: Path):
    config, codec = synthetic.configurations("0.6b", "base", {}, {})
    config["speaker_encoder_config"] = {"enc_dim": 1024, "enc_channels": [64, 64, 64, 64, 192]}
    config["talker_config"]["rope_theta"] = 12345
    config["talker_config"]["of_a_later_version"] = {"x": 1}
    loaded = CheckpointConfig.load(write(tmp_path, config, codec))
    assert loaded.speaker_encoder_config.enc_channels == (64, 64, 64, 64, 192)
    assert loaded.speaker_encoder_config.enc_kernel_sizes == (5, 3, 3, 3, 1)
    assert loaded.talker_config.rope_theta == 12345.0


def test_other_kinds_have_no_speaker_encoder_whatever_the_file_says(tmp_path: Path):
    config, codec = synthetic.configurations("0.6b", "custom_voice", {"speaker_encoder_config": {"enc_dim": 7}}, {})
    assert CheckpointConfig.load(write(tmp_path, config, codec)).speaker_encoder_config is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tts_pad_token_id", 7, "config.json.tts_pad_token_id is 7, which tokenizer_config.json does not add"),
        ("tts_pad_token_id", "7", "config.json.tts_pad_token_id is '7', not int"),
        ("talker_config", None, "config.json.talker_config is not an object"),
        ("talker_config.hidden_size", "1024", "config.json.talker_config.hidden_size is '1024', not int"),
        ("talker_config.hidden_size", True, "talker_config.hidden_size is True, not int"),
        ("talker_config.num_hidden_layers", 0, "talker_config.num_hidden_layers is 0; it must be above 0"),
        ("talker_config.rope_theta", float("nan"), "rope_theta is nan; it must be above 0 and finite"),
        ("talker_config.num_key_value_heads", 3, r"\(16\) is no multiple of num_key_value_heads \(3\)"),
        ("talker_config.head_dim", 127, r"head_dim \(127\) must be even"),
        ("talker_config.hidden_act", "gelu", "talker_config.hidden_act is 'gelu'; only 'silu' is supported"),
        ("talker_config.attention_bias", True, "talker_config.attention_bias is True; only False is supported"),
        ("talker_config.use_sliding_window", True, "use_sliding_window is True; only False"),
        ("talker_config.num_code_groups", 8, "num_code_groups is 8, but .*code_predictor_config.num_code_groups is 16"),
        ("talker_config.spk_id", {"ryan": "3061"}, "talker_config.spk_id.ryan is '3061', not int"),
        ("talker_config.spk_id", {"ryan": -1}, "talker_config.spk_id.ryan is -1, not an id below 3072"),
        ("talker_config.codec_language_id", {"english": 3072}, "language_id.english is 3072, not an id below 3072"),
        ("talker_config.spk_is_dialect", {"eric": "x"}, "spk_is_dialect.eric is 'x', which codec_language_id lacks"),
        ("talker_config.code_predictor_config.vocab_size", 4096, "vocab_size is 4096, but .*codebook_size is 2048"),
        ("speaker_encoder_config.enc_dim", 512, r"enc_dim \(512\) differs from talker_config.hidden_size \(1024\)"),
        ("speaker_encoder_config.enc_channels", [512], "enc_kernel_sizes and enc_dilations differ in length"),
        ("speech_tokenizer.decode_upsample_rate", 2000, "decode_upsample_rate is 2000, but .* multiply to 1920"),
        ("speech_tokenizer.decoder_config.upsample_rates", 8, "upsample_rates is 8, not"),
        ("speech_tokenizer.decoder_config.num_quantizers", 8, "groups is 16, but .*decoder_config.num_quantizers is 8"),
        ("speech_tokenizer.encoder_valid_num_quantizers", 8, "groups is 16, but .*encoder_valid_num_quantizers is 8"),
        ("speech_tokenizer.encoder_config.codebook_size", 1024, "vocab_size is 2048, but .*encoder_config.* is 1024"),
        ("speech_tokenizer.decoder_config.codebook_size", 1024, "vocab_size is 2048, but .*decoder_config.* is 1024"),
        ("speech_tokenizer.encoder_valid_num_quantizers", 33, "encoder_valid_num_quantizers exceeds"),
        ("speech_tokenizer.encoder_config.pad_mode", "reflect", "pad_mode is 'reflect'; only 'constant'"),
        ("speech_tokenizer.encoder_config.use_causal_conv", False, "use_causal_conv is False; only True"),
    ],
)  # fmt: skip
def test_an_impossible_configuration_is_refused_in_one_line(tmp_path: Path, key: str, value: Any, message: str):
    config, codec = synthetic.configurations("0.6b", "base", {}, {})
    *path, last = key.split(".")
    target = config | {"speech_tokenizer": codec} if path else config
    for name in path:
        target = target[name]
    target[last] = value
    with pytest.raises(ConfigError, match=message) as raised:
        CheckpointConfig.load(write(tmp_path, config, codec))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("tts_model_type", "tts_model_type is missing"),
        ("talker_config", "talker_config is missing"),
        ("talker_config.text_hidden_size", "talker_config.text_hidden_size is missing"),
        ("speaker_encoder_config", "speaker_encoder_config belongs to base checkpoints"),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, key: str, message: str):
    config, codec = synthetic.configurations("0.6b", "base", {}, {})
    *path, last = key.split(".")
    target = config
    for name in path:
        target = target[name]
    del target[last]
    with pytest.raises(ConfigError, match=message):
        CheckpointConfig.load(write(tmp_path, config, codec))


@pytest.mark.parametrize("content", ["", "{", "[]", None], ids=["empty", "cut", "list", "absent"])
def test_a_file_that_is_not_an_object_is_named(artifact: Callable[..., Path], tmp_path: Path, content: str | None):
    folder = shutil.copytree(artifact("download", "tiny-base"), tmp_path / "checkpoint")
    path = folder / "speech_tokenizer" / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ConfigError, match=str(path)) as raised:
        CheckpointConfig.load(folder)
    assert "\n" not in str(raised.value)
