"""The codec: the encoder and the decoder of `model_src`, trained to give speech back through few codes.

The first code of a frame is given by its phones (dataset.py); the encoder learns to hear it, and the decoder is told
the right one, or for a third of the utterances what the encoder heard. What phones leave open goes through `groups`
acoustic codebooks. Afterwards the codes of the whole corpus are written for the steps that follow.
"""

import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from rich import print
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_src.speech_decoder import SpeechDecoder
from model_src.speech_encoder import SpeechEncoder
from training import dataset
from training.dataset import PhonePairs, Speech
from training.loop import Loop, adam, descend
from training.losses import Spectra
from training.networks import LEAD, codec, decode, random_crop, random_lead
from training.quantizer import ResidualQuantizer
from training.speech import FRAME, PHONES
from training.step import corpus, on_device, step, work

WARMUP = 200  # steps
KMEANS_BATCHES = 12


@step
def main(cfg: DictConfig) -> None:
    on_device(cfg)
    settings = cfg.codec
    encoder, decoder = codec(cfg)
    quantizer = ResidualQuantizer(settings.groups, settings.rows, encoder.config.codebook_dim, cfg.talker.predicted)
    spectra = Spectra()
    warm(cfg, encoder, decoder, spectra)
    speech = dataset.load(cfg, corpus(cfg)["train"])
    prepare(encoder, decoder, speech, settings.frames)
    both = torch.nn.ModuleList([encoder, decoder])
    train(cfg, both, quantizer, spectra, speech)
    write_tables(both, quantizer)
    save_file({k: v.contiguous() for k, v in both.state_dict().items()}, work(cfg) / "codec.safetensors")
    write_codes(cfg, encoder, quantizer, speech)


def load_codec(cfg: DictConfig) -> tuple[SpeechEncoder, SpeechDecoder, ResidualQuantizer]:
    """The trained codec, refined (decoder.py) if it has been; its tables are not learnt by gradients."""
    encoder, decoder = codec(cfg)
    refined, made = work(cfg) / "refined.safetensors", work(cfg) / "codec.safetensors"
    torch.nn.ModuleList([encoder, decoder]).load_state_dict(load_file(refined if refined.exists() else made))
    for network in (encoder, decoder):
        network.semantic.tables.requires_grad_(False)
        network.acoustic.tables.requires_grad_(False)
    quantizer = ResidualQuantizer(
        cfg.codec.groups, cfg.codec.rows, encoder.config.codebook_dim, cfg.talker.predicted
    ).to(cfg.device)
    quantizer.take(encoder.acoustic.tables[: cfg.codec.groups, : cfg.codec.rows].detach())
    return encoder, decoder, quantizer


@torch.no_grad()
def write_tables(both: torch.nn.ModuleList, quantizer: ResidualQuantizer) -> None:
    """Gives encoder and decoder the quantizer's rows."""
    groups, rows, _ = quantizer.rows.shape
    for network in both:
        network.acoustic.tables.zero_()
        network.acoustic.tables[:groups, :rows] = quantizer.rows


def phone_rows(pairs: PhonePairs, size: int) -> Tensor:
    """The first codebook [codes, size]: two random vectors, one for each half's phone, added."""
    draw = torch.Generator("cpu").manual_seed(1)
    halves = torch.randn(2, len(PHONES), size, generator=draw, device="cpu") * 0.3
    table = torch.from_numpy(pairs.table)
    return halves[0][table[:, 0]] + halves[1][table[:, 1]]


@torch.no_grad()
def prepare(encoder: SpeechEncoder, decoder: SpeechDecoder, speech: Speech, frames: int) -> None:
    """Latents of variance 1, and the first codebook."""
    features = encoder.features(speech.audio(speech.crops(16, frames)))
    for kind in (encoder.semantic, encoder.acoustic):
        kind.input_proj.weight /= kind.input_proj(features).std()
    rows = phone_rows(speech.pairs, decoder.semantic.tables.shape[-1])
    for network in (encoder, decoder):
        network.semantic.tables.copy_(rows[None])
        network.semantic.tables.requires_grad_(False)
        network.acoustic.tables.requires_grad_(False)


def train(
    cfg: DictConfig, both: torch.nn.ModuleList, quantizer: ResidualQuantizer, spectra: Spectra, speech: Speech
) -> None:
    settings = cfg.codec
    encoder, decoder = both
    trained = [p for p in both.parameters() if p.requires_grad]
    optimizer = adam(trained, settings.rate)
    loop = Loop("codec", work(cfg), settings.steps, settings.minutes, [both, quantizer], [optimizer], 0.998)
    heard, draw = torch.tensor(list(settings.heard)), random.Random(cfg.seed)
    for part in loop:
        loop.rate(min(1, (loop.step + 1) / WARMUP) * (0.525 + 0.475 * math.cos(math.pi * part)))
        frames = speech.crops(settings.batch, settings.frames)
        audio = speech.audio(frames) * 10 ** (torch.randn(settings.batch, 1) * 0.06)
        first = speech.first[frames]
        latents, logits = listen(cfg, encoder, audio)
        if loop.step >= settings.unquantized and not quantizer.started:
            start_quantizer(cfg, encoder, quantizer, speech)
        recognition = F.cross_entropy(logits.flatten(0, 1), first.flatten())
        understood = logits.argmax(-1)
        mistaken = (torch.rand(settings.batch, 1) < 0.3) & (loop.step > 600)
        if quantizer.started:
            drawn = heard[torch.randint(len(heard), (settings.batch,))]
            acoustics, commitment = quantizer(latents, drawn)
        else:
            acoustics, commitment = latents, 1e-3 * latents.square().mean()
        lead = random_lead(draw)
        crop = random_crop(settings.frames, settings.crop, lead)
        with autocast(cfg):
            made = decode(decoder, torch.where(mistaken, understood, first), acoustics, crop)
        made, wanted = compared(made.float(), audio, crop, lead)
        distance = spectra(made, wanted)
        variance = latents.flatten(0, 1).var(0).mean()
        loss = 5 * distance + 0.75 * commitment + 0.2 * recognition + 0.3 * variance.clamp(min=1e-6).log().square()
        descend(optimizer, loss, 20.0)
        loop.log(distance=distance, commitment=commitment, recognition=recognition, variance=variance)
        if loop.step % 20 == 0:
            right = (understood == first).float().mean()
            loop.log(mel=(spectra.log_mel(made) - spectra.log_mel(wanted)).abs().mean(), first_right=right)


def listen(cfg: DictConfig, encoder: SpeechEncoder, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Of samples [batch, samples]: the acoustic latents [batch, frames, size], and the logits of the first codes."""
    with autocast(cfg):
        features = encoder.features(audio)
        latents, meant = (
            kind.input_proj(features).transpose(1, 2).float() for kind in (encoder.acoustic, encoder.semantic)
        )
    rows = encoder.semantic.tables[0]
    return latents, meant @ rows.T - rows.square().sum(-1) / 2


def compared(made: Tensor, audio: Tensor, crop: Tensor, lead: int) -> tuple[Tensor, Tensor]:
    """The samples to compare: of the frames `crop` without those that lead in."""
    wanted = audio.unflatten(1, (-1, FRAME)).index_select(1, crop[lead:])
    return made[:, lead * FRAME :], wanted.flatten(1)


@torch.no_grad()
def start_quantizer(cfg: DictConfig, encoder: SpeechEncoder, quantizer: ResidualQuantizer, speech: Speech) -> None:
    batches = []
    for _ in range(KMEANS_BATCHES):
        with autocast(cfg):
            features = encoder.features(speech.audio(speech.crops(cfg.codec.batch, cfg.codec.frames)))
            batches.append(encoder.acoustic.input_proj(features).transpose(1, 2).float().flatten(0, 1))
    quantizer.start(torch.cat(batches))


@torch.no_grad()
def write_codes(cfg: DictConfig, encoder: SpeechEncoder, quantizer: ResidualQuantizer, speech: Speech) -> None:
    """Writes codes.npz: `codes` [frames, 1 + groups] as the encoder hears them; prints how many first are right."""
    torch.backends.cudnn.benchmark = False  # every batch has a length of its own
    codes = torch.zeros(speech.frames, 1 + len(quantizer.rows), dtype=torch.int16)
    order = np.argsort(speech.lengths)
    for batch in np.array_split(order, max(1, int(speech.lengths.sum() * 1.1) // (cfg.codec.batch * 600))):
        longest = int(speech.lengths[batch].max())
        frames = (speech.starts[batch][:, None] + torch.arange(longest)).clamp(max=speech.frames - 1)
        samples = (frames[..., None] * FRAME + torch.arange(FRAME)).flatten(1)
        latents, logits = listen(cfg, encoder, speech.waveform[samples].float() / 32767)
        inside = torch.arange(longest) < torch.as_tensor(speech.lengths[batch])[:, None]
        codes[frames[inside], 1:] = quantizer.codes(latents[inside]).short()
        codes[frames[inside], 0] = logits[inside].argmax(-1).short()
    partial = work(cfg) / "codes.partial.npz"
    np.savez(partial, codes=codes.cpu().numpy())
    partial.rename(work(cfg) / "codes.npz")
    bits = [entropy(codes[:, group]) for group in range(codes.shape[1])]
    right = (codes[:, 0] == speech.first).float().mean()
    print(f"bits of each group {bits}; first code right {right:.3f}")


def entropy(codes: Tensor) -> float:
    """Bits of codes [frames]."""
    share = torch.bincount(codes.long()).float() / len(codes)
    share = share[share > 0]
    return round(float(-(share * share.log2()).sum()), 2)


def warm(cfg: DictConfig, encoder: SpeechEncoder, decoder: SpeechDecoder, spectra: Spectra) -> None:
    """One step each way on noise: compiling and choosing kernels takes a minute, in which the speech can be made."""
    if cfg.device != "cuda":
        return
    torch.backends.cudnn.benchmark = True
    settings = cfg.codec
    for start, lead in ((0, 0), (5, LEAD)):
        audio = torch.randn(settings.batch, settings.frames * FRAME) * 0.1
        first = torch.zeros(settings.batch, settings.frames, dtype=torch.long)
        crop = start + torch.arange(settings.crop)
        with autocast(cfg):
            latents = encoder.acoustic.input_proj(encoder.features(audio)).transpose(1, 2).float()
            made = decode(decoder, first, latents, crop).float()
        spectra(*compared(made, audio, crop, lead)).backward()
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        parameter.grad = None
    print("codec: warm", flush=True)


def autocast(cfg: DictConfig) -> torch.autocast:
    on_gpu = cfg.device == "cuda"  # a recorded step (loop.py) must not find weights that were cast before
    return torch.autocast(cfg.device, dtype=torch.bfloat16, enabled=on_gpu, cache_enabled=False)


if __name__ == "__main__":
    main()
