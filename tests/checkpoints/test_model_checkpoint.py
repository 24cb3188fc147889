"""Loading weights is strict, and keeps their stored dtype."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model_src.checkpoint import NETWORKS, Checkpoint, CheckpointError

MAIN, CODEC = "model.safetensors", "speech_tokenizer/model.safetensors"


@pytest.fixture
def folder(artifact: Callable[..., Path], tmp_path: Path) -> Path:
    """A base checkpoint to damage; it has every network."""
    return shutil.copytree(artifact("download", "tiny-base"), tmp_path / "checkpoint")


def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_every_network_loads_in_the_stored_dtype(folder: Path):
    checkpoint = Checkpoint(folder)
    checkpoint.verify()
    assert checkpoint.names == tuple(NETWORKS)
    for name in checkpoint.names:
        network = checkpoint.load(name)
        stored = torch.float32 if name.startswith("speech_") else torch.bfloat16
        assert {parameter.dtype for parameter in network.parameters()} == {stored}
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_are_mapped_from_the_file_not_copied_to_memory(folder: Path):
    network = Checkpoint(folder).load("text_embedding")
    with safe_open(folder / MAIN, framework="pt") as file:
        stored = file.get_tensor("talker.model.text_embedding.weight")
    assert torch.equal(network.table.weight, stored)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(folder / MAIN))]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in mapped]
    assert any(start <= network.table.weight.data_ptr() < end for start, end in spans)


@pytest.mark.parametrize(
    ("file", "name", "network"),
    [
        (MAIN, "talker.model.layers.1.self_attn.q_norm.weight", "talker"),
        (MAIN, "talker.code_predictor.small_to_mtp_projection.bias", "code_predictor"),
        (MAIN, "speaker_encoder.asp.conv.bias", "speaker_encoder"),
        (CODEC, "decoder.quantizer.rvq_rest.vq.layers.14._codebook.cluster_usage", "speech_decoder"),
        (CODEC, "encoder.downsample.conv.weight", "speech_encoder"),
    ],
)
def test_a_missing_tensor_is_named(folder: Path, file: str, name: str, network: str):
    edit(folder / file, lambda tensors: tensors.pop(name))
    for load in (lambda: Checkpoint(folder).load(network), lambda: Checkpoint(folder).verify()):
        with pytest.raises(CheckpointError, match=rf"missing: {name}$") as raised:
            load()
        assert "\n" not in str(raised.value)


def test_an_unknown_tensor_is_named(folder: Path):
    edit(folder / MAIN, lambda tensors: tensors.update({"talker.model.layers.2.extra.weight": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"unknown: talker\.model\.layers\.2\.extra\.weight$"):
        Checkpoint(folder).verify()


def test_missing_and_unknown_tensors_are_listed_together(folder: Path):
    edit(folder / MAIN, lambda tensors: tensors.update({"talker.head": tensors.pop("talker.codec_head.weight")}))
    with pytest.raises(CheckpointError, match=r"missing: talker\.codec_head\.weight; unknown: talker\.head$"):
        Checkpoint(folder).verify()


@pytest.mark.parametrize(
    ("file", "name", "network"),
    [
        (MAIN, "talker.codec_head.weight", "talker"),
        (CODEC, "decoder.quantizer.rvq_rest.vq.layers.3._codebook.embedding_sum", "speech_decoder"),
        (CODEC, "encoder.quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum", "speech_encoder"),
        (CODEC, "decoder.quantizer.rvq_first.vq.layers.0._codebook.cluster_usage", "speech_decoder"),
    ],
)
def test_a_misshapen_tensor_is_named_with_both_shapes(folder: Path, file: str, name: str, network: str):
    edit(folder / file, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    for load in (lambda: Checkpoint(folder).load(network), lambda: Checkpoint(folder).verify()):
        with pytest.raises(
            CheckpointError, match=rf"of the wrong shape: {name} is \[\d+.*\], config\.json makes it \["
        ):
            load()


def test_a_configuration_of_a_different_size_is_refused(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    config["talker_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing: talker\.model\.layers\.2\..* and \d+ more$"):
        Checkpoint(folder).verify()


def test_shards_are_read_as_one_checkpoint(folder: Path):
    tensors, whole = load_file(folder / MAIN), Checkpoint(folder).load("talker").state_dict()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    (folder / MAIN).unlink()
    checkpoint = Checkpoint(folder)
    checkpoint.verify()
    for name, value in checkpoint.load("talker").state_dict().items():
        assert torch.equal(value, whole[name])


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"x" * 100], ids=["empty", "pickle", "noise"])
def test_a_file_that_is_not_safetensors_is_refused(folder: Path, content: bytes):
    (folder / CODEC).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{CODEC}: cannot be read as safetensors"):
        Checkpoint(folder)


def test_one_tensor_in_two_files_is_refused(folder: Path):
    edit(folder / CODEC, lambda tensors: tensors.update({"talker.codec_head.weight": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"tensor talker\.codec_head\.weight is also in another file"):
        Checkpoint(folder)


def test_weights_of_an_unsupported_dtype_are_refused(folder: Path):
    edit(
        folder / CODEC, lambda tensors: tensors.update({"decoder.decoder.0.conv.bias": torch.ones(1, dtype=torch.int8)})
    )
    with pytest.raises(CheckpointError, match=r"tensor decoder\.decoder\.0\.conv\.bias is I8, not BF16 or F16 or F32"):
        Checkpoint(folder)
