"""The decoder once more, against discriminators: spectra alone leave speech muffled.

It learns from the encoder's codes and, when the talker's are there (respeak.py), from those as well: what a talker says
is smoother than what an encoder hears, and a decoder that knows both speaks clearly from both.
"""

import math
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from rich import print
from safetensors.torch import save_file
from torch import Tensor

from model_src.speech_decoder import SpeechDecoder
from training import dataset
from training.codec import autocast, compared, load_codec
from training.dataset import Speech
from training.loop import Loop, descend
from training.losses import JUDGED, Discriminators, Spectra
from training.networks import decode, random_crop
from training.quantizer import ResidualQuantizer
from training.step import corpus, on_device, step, work

WARMUP = 50  # steps
ADVERSARIAL_FROM = 300  # steps over which the discriminators gain their full weight
MISTAKEN = 0.2  # of the utterances begin from the first codes that the encoder heard


class Codes:
    """Codes of the whole corpus, from the encoder and, once written, from the talker."""

    def __init__(self, cfg: DictConfig, quantizer: ResidualQuantizer) -> None:
        self.quantizer = quantizer
        self.device = cfg.device
        self.heard = torch.tensor(list(cfg.decoder.heard))
        with np.load(work(cfg) / "codes.npz") as stored:
            self.codes, self.first = self._read(stored["codes"]), self._read(stored["heard"])
        self.said_path = work(cfg) / "said.npz"
        self.said: Tensor | None = None

    def _read(self, codes: np.ndarray) -> Tensor:
        return torch.as_tensor(codes, device=self.device)

    def look(self) -> None:
        """Takes up the talker's codes if they have been written meanwhile."""
        if self.said is None and self.said_path.exists():
            with np.load(self.said_path) as stored:
                self.said = self._read(stored["codes"])
            print("decoder: hears the talker's codes from here on", flush=True)

    def draw(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """First codes [batch, frames] and summed acoustic rows [batch, frames, size]: half of them the talker's."""
        count = len(frames)
        codes = self.codes[frames].long()
        heard = self.heard[torch.randint(len(self.heard), (count,))]
        first = torch.where(torch.rand(count, 1) < MISTAKEN, self.first[frames].long(), codes[..., 0])
        acoustics = self.quantizer.sum(codes[..., 1:], heard)
        if self.said is not None:
            half = count // 2
            first[:half] = codes[:half, :, 0]
            acoustics[:half] = self.quantizer.sum(self.said[frames[:half]].long())
        return first, acoustics


@step
def main(cfg: DictConfig) -> None:
    on_device(cfg)
    if cfg.device == "cuda":
        torch.backends.cudnn.benchmark = True
    _, decoder, quantizer = load_codec(cfg)
    decoder.semantic.tables.requires_grad_(False)
    decoder.acoustic.tables.requires_grad_(False)
    speech = dataset.load(cfg, corpus(cfg)["train"])
    train(cfg, decoder, Codes(cfg, quantizer), speech, work(cfg) / "decoder.safetensors")


def train(cfg: DictConfig, decoder: SpeechDecoder, codes: Codes, speech: Speech, path: Path) -> None:
    settings = cfg.decoder
    discriminators, spectra = Discriminators(), Spectra()
    trained = [p for p in decoder.parameters() if p.requires_grad]
    theirs = list(discriminators.parameters())
    ours, rival = (
        torch.optim.AdamW(parameters, settings.rate, (0.8, 0.99), weight_decay=1e-3) for parameters in (trained, theirs)
    )
    loop = Loop("decoder", work(cfg), settings.steps, settings.minutes, [decoder, discriminators], [ours, rival], 0.996)
    for part in loop:
        loop.rate(min(1, (loop.step + 1) / WARMUP) * (0.525 + 0.475 * math.cos(math.pi * part)))
        if loop.step % 20 == 0:
            codes.look()
        frames = speech.crops(settings.batch, settings.frames)
        first, acoustics = codes.draw(frames)
        crop, lead = random_crop(settings.frames, settings.crop)
        with autocast(cfg):
            made = decode(decoder, first, acoustics, crop)
        made, wanted = compared(made.float(), speech.audio(frames), crop, lead)
        begin = int(torch.randint(made.shape[-1] - JUDGED + 1, ()).item())
        short, real = made[:, begin : begin + JUDGED], wanted[:, begin : begin + JUDGED]
        with autocast(cfg):
            told_apart = discriminators.told_apart(short.detach(), real)
        descend(rival, told_apart, 50.0)
        discriminators.requires_grad_(False)
        with autocast(cfg):
            adversarial, features = discriminators.fooled(short, real)
        discriminators.requires_grad_(True)
        distance = spectra(made, wanted)
        loss = 5 * distance + min(1, loop.step / ADVERSARIAL_FROM) * (0.25 * adversarial + features)
        descend(ours, loss, 20.0)
        loop.log(distance=distance, told_apart=told_apart, adversarial=adversarial, features=features)
        if loop.step % 20 == 0:
            loop.log(mel=(spectra.log_mel(made) - spectra.log_mel(wanted)).abs().mean())
        if loop.step % 200 == 0:
            with loop.averaged():
                write(decoder, path)
    write(decoder, path)


def write(decoder: SpeechDecoder, path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in decoder.state_dict().items()}, partial)
    partial.rename(path)


if __name__ == "__main__":
    main()
