"""Synthetic checkpoints: the same bytes everywhere, the released layout, and the official package's own module tree."""

import hashlib
import io
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from pipeline.checkpoints import synthetic, tensors
from pipeline.checkpoints.tensors import Tensor
from pipeline.stage import PipelineError, configuration

# Bytes of the released files. Reordering the header changes a few bytes; an extra or missing tensor, thousands.
RELEASED_SIZES = {
    ("0.6b", "base"): 1_829_344_272,
    ("1.7b", "base"): 3_857_413_744,
    ("1.7b", "custom_voice"): 3_833_402_552,
    ("1.7b", "voice_design"): 3_833_402_552,
}
RELEASED_SPEECH_TOKENIZER_SIZE = 682_293_092
RELEASED_SHA256 = {
    "generation_config.json": "f1b90b4513f3b34c62851049e2492d7b4c5940daf1276f89c82b8ef04127f3aa",
    "preprocessor_config.json": "efdde1022ea9d76928bf7a9cd53139138f5ba2e466e837f08f6105ab1af1c119",
    "speech_tokenizer/configuration.json": "6bc26d64eb5024b4d1dab5a52371958b429256d6c9d59787f1f5294a54e0cebd",
    "speech_tokenizer/preprocessor_config.json": "fcb3805e597e786d4067706e602f6688524640f8d3396790e2e09b5942fcbdfb",
}
ABRIDGED = "generation_config.json"  # by the tests, to say less
TINY = ("tiny-custom-voice", "tiny-base", "tiny-voice-design")


def numbers(tensor: Tensor, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(synthetic.random_numbers(tensor, seed)))


def file_size(listing: list[Tensor], dtype: str) -> int:
    header = io.BytesIO()
    synthetic.write_header(header, sorted(listing, key=lambda tensor: tensor.name), dtype)
    return header.tell() + sum(tensor.elements for tensor in listing) * synthetic.BYTES[dtype]


def test_numbers_are_the_same_on_every_platform():
    values = numbers(Tensor("a.weight", (1000,), std=0.1, mean=1.0), seed=7)
    digest = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    assert digest == "bd591392e40429852b9ba5000249c7691f74447116d2ee3863c8e01289c56e9f"


def test_numbers_do_not_depend_on_the_chunk_size(monkeypatch):
    tensor = Tensor("a.weight", (3, 1001), std=1.0)
    whole = numbers(tensor)
    monkeypatch.setattr(synthetic, "CHUNK", 100)
    np.testing.assert_array_equal(numbers(tensor), whole)


def test_numbers_depend_on_name_and_seed():
    first = numbers(Tensor("a", (64,), std=1.0))
    assert not np.array_equal(first, numbers(Tensor("b", (64,), std=1.0)))
    assert not np.array_equal(first, numbers(Tensor("a", (64,), std=1.0), seed=1))


def test_numbers_are_normally_distributed():
    values = numbers(Tensor("a", (1_000_000,), std=2.0, mean=-3.0)).astype(np.float64)
    unit = (values + 3) / 2
    assert abs(unit.mean()) < 0.005
    assert abs(unit.std() - 1) < 0.005
    assert 0.66 < (np.abs(unit) < 1).mean() < 0.69
    assert 3.2 < np.abs(unit).max() < 3.4642


def test_bfloat16_rounds_as_torch_does():
    ties = np.array([0x3F808000, 0x3F818000, 0xBF807FFF, 0x3F808001, 0x00000000, 0x80000000], np.uint32)
    values = np.concatenate([ties.view(np.float32), numbers(Tensor("a", (10_000,), std=0.3))])
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(synthetic.bfloat16(values), expected)


@pytest.mark.parametrize(("size", "kind"), RELEASED_SIZES)
def test_full_size_is_the_released_size(size, kind):
    config, speech_tokenizer = synthetic.configurations(size, kind, {}, {})
    assert abs(file_size(tensors.model(config), "BF16") - RELEASED_SIZES[size, kind]) <= 64
    codec = file_size(tensors.speech_tokenizer(speech_tokenizer), "F32")
    assert abs(codec - RELEASED_SPEECH_TOKENIZER_SIZE) <= 64


def test_kinds_differ_as_the_releases_do():
    kinds = {
        kind: synthetic.configurations("1.7b", kind, {}, {})[0] for kind in ("base", "custom_voice", "voice_design")
    }
    assert kinds["custom_voice"]["talker_config"]["spk_id"]["vivian"] == 3065
    assert kinds["base"]["talker_config"]["spk_id"] == {} == kinds["voice_design"]["talker_config"]["spk_id"]
    assert kinds["base"]["speaker_encoder_config"]["enc_dim"] == 2048
    assert "speaker_encoder_config" not in kinds["voice_design"]


def test_unknown_size_lists_the_known_ones():
    with pytest.raises(PipelineError, match=r"variant.size is '3b'; known: 0.6b, 1.7b"):
        synthetic.configurations("3b", "base", {}, {})


@pytest.mark.parametrize("variant", TINY)
def test_checkpoint_is_in_the_released_layout(artifact, variant):
    folder = artifact("download", variant)
    for name, digest in RELEASED_SHA256.items():
        written = (synthetic.RELEASE if name == ABRIDGED else folder) / name
        assert hashlib.sha256(written.read_bytes()).hexdigest() == digest, name
    config = json.loads((folder / "config.json").read_text())
    assert config["talker_config"]["text_vocab_size"] == 151936
    codec = json.loads((folder / "speech_tokenizer/config.json").read_text())
    for path, listing, dtype in (
        ("model.safetensors", tensors.model(config), "BF16"),
        ("speech_tokenizer/model.safetensors", tensors.speech_tokenizer(codec), "F32"),
    ):
        with safe_open(folder / path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert set(file.keys()) == {tensor.name for tensor in listing}
            for tensor in listing:
                view = file.get_slice(tensor.name)
                assert (view.get_dtype(), tuple(view.get_shape())) == (dtype, tensor.shape), tensor.name
        first = min(listing, key=lambda tensor: tensor.elements)
        with safe_open(folder / path, framework="pt") as file:
            stored = file.get_tensor(first.name).flatten()
        seed = configuration([f"variant={variant}"]).variant.seed
        assert torch.equal(stored, torch.from_numpy(numbers(first, seed)).to(stored.dtype))


def test_same_seed_gives_the_same_bytes(tmp_path):
    variant = configuration(["variant=tiny-base"]).variant
    overrides = OmegaConf.to_container(variant.config), OmegaConf.to_container(variant.speech_tokenizer)
    config, codec = synthetic.configurations("1.7b", "base", *overrides)
    for folder in "first", "second":
        synthetic.write(tmp_path / folder, config, codec, seed=3)
    synthetic.write(tmp_path / "third", config, codec, seed=4)
    first, second, third = (contents(tmp_path / folder) for folder in ("first", "second", "third"))
    assert first == second
    assert {name for name in first if first[name] != third[name]} == {
        "model.safetensors",
        "speech_tokenizer/model.safetensors",
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- against the official package ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official() -> Path:
    """The Python of an environment with the official package; see tests/reference/install.sh."""
    python = Path(os.environ.get("QWEN_TTS_REFERENCE", "~/.cache/qwen-tts-reference")).expanduser() / "bin/python"
    if not python.exists():
        pytest.skip(f"no official package at {python}: run tests/reference/install.sh and set QWEN_TTS_REFERENCE")
    return python


def run_official(python: Path, *arguments: str | Path) -> dict:
    script = Path(__file__).parents[1] / "reference" / "inspect_checkpoint.py"
    done = subprocess.run([python, script, *arguments], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("size", "kind"), [("0.6b", "custom_voice"), ("1.7b", "base")])
def test_listing_is_the_official_module_tree(official, tmp_path, size, kind):
    config, codec = synthetic.configurations(size, kind, {}, {})
    (tmp_path / "speech_tokenizer").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "speech_tokenizer/config.json").write_text(json.dumps(codec))
    shapes = run_official(official, "shapes", tmp_path)
    assert {t.name: list(t.shape) for t in tensors.model(config)} == shapes["model"]
    assert {t.name: list(t.shape) for t in tensors.speech_tokenizer(codec)} == shapes["speech_tokenizer"]


@pytest.mark.parametrize("variant", TINY)
def test_official_package_speaks_from_it(official, artifact, variant):
    frames = 12
    speech = run_official(official, "speak", artifact("download", variant), str(frames + 1))
    assert speech["rate"] == 24000
    for utterance in speech["utterances"]:
        codes = np.array(utterance["codes"])[-frames:]
        assert codes.shape == (frames, 16), "the end token was drawn before the limit"
        assert all(len(np.unique(group)) > frames / 2 for group in codes.T), "codes repeat from frame to frame"
        assert all(len(np.unique(frame)) > 8 for frame in codes), "codes repeat from group to group"
        assert utterance["samples"] == 1920 * frames
        assert 0.02 < utterance["deviation"] < 0.3
        assert utterance["peak"] < 1
    if variant == "tiny-base":
        reference = np.array(speech["reference_codes"])
        assert all(len(np.unique(group)) > len(reference) / 3 for group in reference.T)
