"""A work folder that goes on from a voice of this repository: its codec, its first codes, and its talker.

The tables of codes are shipped written out; here they are what the training knows them by, rows of codebooks.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from rich import print
from safetensors.torch import save_file
from torch import Tensor, nn

from model_src.checkpoint import Checkpoint
from model_src.speech_decoder import SpeechDecoder
from model_src.speech_encoder import SpeechEncoder
from pipeline.checkpoints import packaged
from pipeline.stage import ROOT
from training.checkpoint import configuration
from training.codec import load_codec
from training.networks import codec
from training.step import on_device, step, work
from training.talker import Language

PAIRS = Path(__file__).parent / "data" / "pairs.npy"  # uint8 [2048, 2]: the phones of the shipped codec's first codes


@step
@torch.no_grad()
def main(cfg: DictConfig) -> None:
    on_device(cfg)
    torch.set_default_device("cpu")
    with tempfile.TemporaryDirectory() as unpacked:
        packaged.unpack(ROOT / cfg.start, Path(unpacked))
        shipped = Checkpoint(Path(unpacked))
        networks = {name: shipped.load(name) for name in shipped.names}
    save(nn.ModuleList(codec_of(cfg, networks)).state_dict(), work(cfg) / "codec.safetensors")
    pairs = torch.from_numpy(np.load(PAIRS).astype(np.int64))
    np.save(work(cfg) / "pairs.npy", pairs.numpy())
    torch.set_default_device(cfg.device)
    quantizer = load_codec(cfg)[2]
    language = Language(cfg, configuration(cfg), quantizer).to(cfg.device)
    language.codebooks = quantizer.rows[: language.predicted].clone()
    language.pairs = pairs.to(cfg.device)
    take(language, networks)
    heard = "speaker_encoder" in networks
    known = {name: value for name, value in language.state_dict().items() if heard or not name.startswith("speaker.")}
    save(known, work(cfg) / "talker.safetensors")
    print(f"{work(cfg)}: codec and talker of {cfg.start}")


def codec_of(cfg: DictConfig, networks: dict[str, nn.Module]) -> tuple[SpeechEncoder, SpeechDecoder]:
    """The shipped codec at the size that conf says; residual units that it has not say nothing at first."""
    both = encoder, decoder = codec(cfg)
    for unit in (unit for block in encoder.blocks for unit in block.units):
        unit.conv2.conv.weight.zero_()
    encoder.load_state_dict(encoder.state_dict() | networks["speech_encoder"].state_dict())
    decoder.load_state_dict(networks["speech_decoder"].state_dict())
    return both


def take(language: Language, networks: dict[str, nn.Module]) -> None:
    """The shipped weights; tables of acoustic codes by least squares from their codebooks."""
    device = language.codebooks.device
    networks = {name: network.to(device) for name, network in networks.items()}
    shipped = networks["code_predictor"]
    language.text.load_state_dict(networks["text_embedding"].state_dict())
    language.talker.load_state_dict(networks["talker"].state_dict())
    language.predictor.load_state_dict(
        {name: value for name, value in shipped.state_dict().items() if name in language.predictor.state_dict()}
    )
    if language.speaker is not None and "speaker_encoder" in networks:
        language.speaker.load_state_dict(networks["speaker_encoder"].state_dict())
    language.rows.weight.copy_(networks["codec_embedding"].weight)
    for own in (language.phone_rows, language.phone_heads):
        own.zero_()
    books = language.codebooks.float()
    count = books.shape[1]
    rows = torch.cat([shipped.embeddings[group].weight[:count] for group in range(len(books))])
    language.acoustic_rows.copy_(solved(books.flatten(0, 1), rows))
    norms = books.square().sum(-1, keepdim=True)
    known = torch.cat((books, norms - norms.mean(1, keepdim=True), torch.ones_like(norms)), -1)
    for group, features in enumerate(known):
        language.acoustic_heads[group] = solved(features, shipped.heads[group].weight[:count])[:-1]


def solved(features: Tensor, wanted: Tensor) -> Tensor:
    """The matrix that makes `wanted` [rows, width] of `features` [rows, size], as nearly as any does."""
    found = torch.linalg.lstsq(features.double().cpu(), wanted.double().cpu()).solution
    return found.float().to(features.device)


def save(state: dict[str, Tensor], path: Path) -> None:
    plain = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file({name: tensor.contiguous() for name, tensor in plain.items()}, path)


if __name__ == "__main__":
    main()
