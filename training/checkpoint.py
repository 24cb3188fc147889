"""The checkpoint folder in the layout of the released ones: its configuration, from which every step builds its
networks, and at last its weights.

The text vocabulary is the released one's first 256 tokens, the bytes, and the merges that make `assistant`, which
prompts count as one token: a small corpus cannot teach 151,643 tokens. Special tokens follow as they do there.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich import print
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_src.checkpoint import Checkpoint
from model_src.config import CheckpointConfig
from pipeline.checkpoints import tensors, tokenizer
from pipeline.checkpoints.synthetic import RELEASE, merge
from training.step import on_device, step, work

ROLE = "assistant"
RELEASED_TOKENS = 151_643  # in the released vocabulary, before the special ones
TOKEN_IDS = ("im_start_token_id", "im_end_token_id", "tts_pad_token_id", "tts_bos_token_id", "tts_eos_token_id")


@step
def main(cfg: DictConfig) -> None:
    """Writes the trained weights, and checks that they fit."""
    from training.codec import load_codec
    from training.talker import Language

    on_device(cfg)
    config = configuration(cfg)
    encoder, decoder, quantizer = load_codec(cfg)
    language = Language(cfg, config, quantizer)
    language.load_state_dict(load_file(work(cfg) / "predictor.safetensors", device=cfg.device))
    networks = language.plain() | {"speech_encoder": encoder, "speech_decoder": decoder}
    for kind in cfg.kinds:
        path = folder(cfg, kind)
        for weights in path.rglob("*.safetensors"):
            weights.unlink()
        parsed = json.loads((path / "config.json").read_text())
        codec = json.loads((path / "speech_tokenizer" / "config.json").read_text())
        empty = Checkpoint(path)
        own = {key: networks[key] for key in empty.names}
        stored = {name: tensor for key, module in own.items() for name, tensor in named(empty, key, module)}
        write(path / "model.safetensors", tensors.model(parsed), stored, torch.bfloat16)
        write(path / "speech_tokenizer/model.safetensors", tensors.speech_tokenizer(codec), stored, torch.float32)
        Checkpoint(path).verify()
        print(f"{path}: written")


def folder(cfg: DictConfig, kind: str) -> Path:
    """Where the checkpoint of a kind is written. One talker can serve several kinds."""
    return Path(cfg.checkpoint) / kind


def configuration(cfg: DictConfig) -> CheckpointConfig:
    """Writes every file of the checkpoint folders but the weights; the configuration of the first kind, read back."""
    for kind in cfg.kinds:
        path = folder(cfg, kind)
        (path / "speech_tokenizer").mkdir(parents=True, exist_ok=True)
        tokens = write_tokenizer(path)
        files = {
            "config.json": main_configuration(cfg, kind, tokens),
            "generation_config.json": merge(
                json.loads((RELEASE / "generation_config.json").read_text()), OmegaConf.to_container(cfg.generation)
            ),
            "speech_tokenizer/config.json": merge(
                json.loads((RELEASE / "speech_tokenizer/config.json").read_text()),
                OmegaConf.to_container(cfg.codec.networks),
            ),
        }
        for name, content in files.items():
            put(path / name, json.dumps(content, indent=2))
        for name in (
            "preprocessor_config.json",
            "speech_tokenizer/preprocessor_config.json",
            "speech_tokenizer/configuration.json",
        ):
            put(path / name, (RELEASE / name).read_text())
    return CheckpointConfig.load(folder(cfg, cfg.kinds[0]))


def main_configuration(cfg: DictConfig, kind: str, tokens: int) -> dict:  # type: ignore[type-arg]
    """config.json of a kind, whose text vocabulary has so many tokens."""
    networks = OmegaConf.to_container(cfg.talker.networks)
    predictor = networks["code_predictor_config"]
    predictor["layer_types"] = ["full_attention"] * predictor["num_hidden_layers"]
    half = networks["head_dim"] // 2
    third = half * 5 // 16  # the shares of the release: 24, 20 and 20 of 64
    networks["rope_scaling"] = {"mrope_section": [half - 2 * third, third, third]}
    released = json.loads((RELEASE / "config.json").read_text())
    speaker = released.pop("speaker_encoder_config")
    if kind == "base":
        released["speaker_encoder_config"] = (
            speaker | OmegaConf.to_container(cfg.talker.speaker) | {"enc_dim": networks["hidden_size"]}
        )
    released["talker_config"]["codec_language_id"] = {}
    names = cfg.speech.voices if kind == "custom_voice" else {}
    talker = networks | {
        "text_vocab_size": tokens,
        "spk_id": {name: voice.id for name, voice in names.items()},
        "spk_is_dialect": dict.fromkeys(names, False),
        "codec_language_id": {"english": 2050},
    }
    ids = {name: released[name] - RELEASED_TOKENS + len(vocabulary()) for name in TOKEN_IDS}
    ids["assistant_token_id"] = len(vocabulary()) - 1
    return merge(released, {"tts_model_type": kind, "talker_config": talker} | ids)


def vocabulary() -> dict[str, int]:
    """The tokens, in the spelling of vocab.json: the bytes, then the parts of `assistant` as Qwen's BPE merges them."""
    released = json.loads(tokenizer.files()["vocab.json"])
    tokens = list(released)[:256]
    parts = [ROLE]
    for token in parts:
        if len(token) > 1:
            parts += tokenizer.halves(token, released)
    merged = sorted({token for token in parts if len(token) > 1}, key=released.__getitem__)
    return {token: number for number, token in enumerate(tokens + merged)}


def write_tokenizer(folder: Path) -> int:
    """vocab.json, merges.txt and tokenizer_config.json; the number of tokens."""
    tokens = vocabulary()
    merges = [" ".join(tokenizer.halves(token, tokens)) for token in tokens if len(token) > 1]
    settings = json.loads((RELEASE / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {
        str(int(number) - RELEASED_TOKENS + len(tokens)): token
        for number, token in settings["added_tokens_decoder"].items()
    }
    put(folder / "vocab.json", json.dumps(tokens, ensure_ascii=False, separators=(",", ":")))
    put(folder / "merges.txt", "".join(merge + "\n" for merge in merges))
    put(folder / "tokenizer_config.json", json.dumps(settings, indent=2, ensure_ascii=False))
    return len(tokens) + len(settings["added_tokens_decoder"])


def put(path: Path, text: str) -> None:
    """Writes a file whole: steps that run side by side all write it."""
    partial = path.with_name(f".{os.getpid()}")
    partial.write_text(text)
    partial.rename(path)


def named(checkpoint: Checkpoint, network: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A network's tensors under the checkpoint's names; a codebook is a sum of vectors, with a usage of 1."""
    for parameter, value in module.state_dict().items():
        sources = list(checkpoint.sources(network, parameter, value))
        if parameter.endswith("tables"):
            yield from zip(sources, value, strict=False)
        else:
            yield sources[0], value


def write(path: Path, listing: list[tensors.Tensor], stored: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Writes the tensors that the layout lists; those that inference never reads are zero."""
    weights = {}
    for tensor in listing:
        value = stored.get(tensor.name)
        if value is None:
            value = torch.full(tensor.shape, tensor.mean, device="cpu")
        weights[tensor.name] = value.detach().cpu().reshape(tensor.shape).to(dtype).contiguous()
    save_file(weights, path, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
