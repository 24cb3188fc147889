"""Talker and code predictor: text to the codes of speech.

First the talker learns first codes from text and their own past (minutes; the codec need not exist). Then, with
`talker.acoustics=true`, it goes on together with the code predictor on all codes.

Three things make small networks learn this from some hours of speech. The rows of the first codes, in and out, are
sums of their phones' rows and of a row of their own. Those of the acoustic codes are linear in the codec's rows. And
the code predictor learns what follows from the codes that were really taken, right or wrong: it reads a sample of the
codes near the latent, and each target is what is then nearest to the rest.

For a base checkpoint the speaker encoder learns beside them (speaker.py).
"""

from copy import deepcopy
from math import sqrt

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_src.code_predictor import CodePredictor
from model_src.config import CheckpointConfig
from model_src.layers import Embedding, causal_mask, rotary
from model_src.speaker_encoder import SpeakerEncoder
from model_src.talker import Talker, TextEmbedding
from qwen3_tts_ov.prompt import REFERENCE, SPEAKER
from training import dataset
from training.checkpoint import configuration
from training.codec import autocast
from training.dataset import CODES, Speech
from training.loop import Loop, descend
from training.prompts import Batch, Prompts
from training.quantizer import ResidualQuantizer
from training.speaker import Ears, start_encoder
from training.speech import PHONES
from training.step import TrainingError, corpus, on_device, step, work

WARMUP = 200  # steps
HELD_RATE = 0.7  # of the run, after which the rate falls to FINAL of it
FINAL = 0.03
SURE = 100.0  # of the code predictor's constant feature: by how much row 0 is preferred where it says nothing
CONSTANT = 4.0  # value of the code predictor's first feature, before its norm
CONTROLS = 128  # ids after the codes, among which the prompt's control ids are
PREDICTED_POSITIONS = 6144  # of a batch, for the code predictor
GROUP_WEIGHTS = (1.0, 0.8, 0.6, 0.5, 0.4)
TRAITS_WEIGHT = 0.3


class Language(nn.Module):
    """Talker, code predictor and embeddings, with the tables that code rows are made of."""

    def __init__(self, cfg: DictConfig, config: CheckpointConfig, quantizer: ResidualQuantizer | None) -> None:
        super().__init__()
        talker = config.talker_config
        predictor = talker.code_predictor_config
        self.config, self.predicted = talker, cfg.talker.predicted
        self.named = [voice.id for voice in cfg.speech.voices.values()] if "custom_voice" in cfg.kinds else []
        self.text = TextEmbedding(talker)
        self.talker = Talker(talker)
        self.predictor = CodePredictor(talker)
        self.predictor.embeddings, self.predictor.heads = nn.ModuleList(), nn.ModuleList()  # made of the tables below
        self.rows = Embedding(talker.vocab_size, talker.hidden_size)
        self.phone_rows = nn.Parameter(torch.randn(2, len(PHONES), talker.hidden_size) * 0.4)
        self.phone_heads = nn.Parameter(torch.zeros(2, len(PHONES), talker.hidden_size))
        size = quantizer.rows.shape[-1] if quantizer else cfg.codec.networks.decoder_config.codebook_dim // 2
        self.register_buffer("pairs", torch.zeros(CODES, 2, dtype=torch.long))
        self.register_buffer("codebooks", torch.zeros(self.predicted, cfg.codec.rows, size))
        self.acoustic_rows = nn.Parameter(torch.randn(size, talker.hidden_size) * 0.02)
        self.acoustic_heads = nn.Parameter(torch.randn(self.predicted, size + 1, predictor.hidden_size) * 0.02)
        initialise(self)
        self._keep_constant()
        self.speaker = SpeakerEncoder(config.speaker_encoder_config) if config.speaker_encoder_config else None
        if self.speaker is not None:
            start_encoder(self.speaker)

    def _keep_constant(self) -> None:
        """The code predictor's first feature stays CONSTANT: it is how row 0 is preferred in groups left out."""
        predictor = self.predictor
        kept = [(predictor.projection.weight, 0.0), (predictor.projection.bias, CONSTANT)]
        for layer in predictor.layers:
            kept += [(layer.self_attn.o_proj.weight, 0.0), (layer.mlp.down_proj.weight, 0.0)]
        for parameter, value in kept:
            with torch.no_grad():
                parameter[0] = value
            free = torch.ones_like(parameter)
            free[0] = 0
            parameter.register_hook(lambda gradient, free=free: gradient * free)

    def first_rows(self) -> tuple[Tensor, Tensor]:
        """The talker's rows [vocabulary, hidden] of first codes, as inputs and as outputs."""
        a, b = self.pairs.unbind(1)
        made = [
            torch.cat((own[:CODES] + phones[0][a] + phones[1][b], own[CODES:]))
            for own, phones in (
                (self.rows.weight, self.phone_rows),
                (self.talker.codec_head.weight, self.phone_heads),
            )
        ]
        return made[0], made[1]

    def said(self, codes: Tensor) -> Tensor:
        """The summed input rows [..., hidden] of the acoustic codes that the code predictor says [..., groups]."""
        rows = [F.embedding(codes[..., group], table) for group, table in enumerate(self.codebooks)]
        return sum(rows[1:], rows[0]) @ self.acoustic_rows

    def group_heads(self) -> Tensor:
        """The code predictor's output rows [groups, codes, hidden]."""
        norms = self.codebooks.square().sum(-1, keepdim=True)
        return torch.cat((self.codebooks, norms - norms.mean(1, keepdim=True)), -1) @ self.acoustic_heads

    def hidden(self, x: Tensor) -> Tensor:
        """The talker's normalised states of inputs [batch, positions, hidden]."""
        positions = torch.arange(x.shape[1])[None]
        turns = rotary(positions, self.config.head_dim, self.config.rope_theta)
        hidden, _ = self.talker.decode(x, turns, causal_mask(positions, positions[0]), None)
        return self.talker.norm(hidden)

    def predict(self, inputs: Tensor) -> Tensor:
        """The code predictor's states of inputs [batch, positions, talker hidden]."""
        return self.predictor.decode(inputs, 0)[0]

    @torch.no_grad()
    def plain(self) -> dict[str, nn.Module]:
        """The networks of `model_src` with their tables written out, by their names there."""
        rows, heads = self.first_rows()
        unused = torch.ones(len(rows), 1, dtype=torch.bool)
        unused[[*range(CODES + CONTROLS), *self.named]] = False
        embedding = Embedding(*rows.shape)
        embedding.weight.copy_(rows.masked_fill(unused, 0))
        talker = deepcopy(self.talker)
        heads = heads - heads.mean(0)  # softmax does not see what all rows share
        talker.codec_head.weight.copy_(heads.masked_fill(unused, 0))
        predictor = CodePredictor(self.config)
        for table in (*predictor.embeddings, *predictor.heads):
            table.weight.zero_()
        for group, made in enumerate(self.group_heads()):
            predictor.embeddings[group].weight[: len(made)] = self.codebooks[group] @ self.acoustic_rows
            predictor.heads[group].weight[: len(made)] = made - made.mean(0)
        for head in predictor.heads[self.predicted :]:
            head.weight[0, 0] = self.predictor.norm.weight[0].sign() * SURE
        predictor.load_state_dict(self.predictor.state_dict(), strict=False)
        written = {
            "text_embedding": self.text,
            "codec_embedding": embedding,
            "talker": talker,
            "code_predictor": predictor,
        }
        return written | ({"speaker_encoder": self.speaker} if self.speaker is not None else {})

    @torch.no_grad()
    def take(self, state: dict[str, Tensor]) -> None:
        """Goes on from saved weights, whose codebooks may have been scaled otherwise and which may know no speakers."""
        codebooks = self.codebooks.clone()
        known = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("speaker.")}
        self.load_state_dict(known | state)
        if codebooks.any() and self.codebooks.any():
            scale = self.codebooks.norm() / codebooks.norm()
            self.acoustic_rows *= scale
            self.acoustic_heads[:, :-1] *= scale
            self.acoustic_heads[:, -1] *= scale.square()
            self.codebooks = codebooks


@torch.no_grad()
def initialise(language: Language) -> None:
    depth = language.config.num_hidden_layers
    for name, parameter in language.named_parameters():
        if parameter.dim() == 1:
            nn.init.ones_(parameter) if "norm" in name else nn.init.zeros_(parameter)
        elif name == "text.table.weight":
            nn.init.normal_(parameter, std=1.0)
        elif name == "rows.weight":
            nn.init.normal_(parameter, std=0.4)
        elif name == "talker.codec_head.weight":
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.normal_(parameter, std=0.7 / sqrt(2 * depth * parameter.shape[1]))
        elif name.endswith(".weight"):
            nn.init.normal_(parameter, std=0.9 / sqrt(parameter.shape[1]))


@step
def main(cfg: DictConfig) -> None:
    on_device(cfg)
    config = configuration(cfg)
    speech = dataset.load(cfg, corpus(cfg)["train"], waveform=config.speaker_encoder_config is not None)
    quantizer, codes = acoustics(cfg) if cfg.talker.acoustics else (None, None)
    language = Language(cfg, config, quantizer).to(cfg.device)
    first_stage = work(cfg) / "talker.safetensors"
    if quantizer is not None:
        language.codebooks = quantizer.rows[: language.predicted].clone()
        language.take(load_file(first_stage, device=cfg.device))
    language.pairs = torch.as_tensor(speech.pairs.table, device=cfg.device)
    name = "predictor" if cfg.talker.acoustics else "talker"
    train(Task(cfg, language, speech, quantizer, codes), name)
    save_file({k: v.contiguous() for k, v in language.state_dict().items()}, work(cfg) / f"{name}.safetensors")


def acoustics(cfg: DictConfig) -> tuple[ResidualQuantizer, Tensor]:
    """The codec's codebooks, scaled so that they add up to a deviation of 1, and the corpus' codes [frames, groups].

    Of each frame's groups the first is the first code as the encoder hears it.
    """
    from training.codec import load_codec

    path = work(cfg) / "codes.npz"
    if not path.exists():
        raise TrainingError(f"{path} is missing; run python -m training.codec first")
    with np.load(path) as stored:
        codes = torch.as_tensor(stored["codes"], device=cfg.device)
    quantizer = load_codec(cfg)[2]
    some = codes[torch.randint(len(codes), (20_000,)), 1:][None].long()
    quantizer.rows /= quantizer.sum(some).std()
    return quantizer, codes


def train(task: "Task", name: str) -> None:
    settings, language = task.cfg.talker, task.language
    decayed, others = [], []
    for parameter_name, parameter in language.named_parameters():
        matrix = parameter.dim() > 1 and "rows" not in parameter_name and "table" not in parameter_name
        (decayed if matrix else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.03}, {"params": others, "weight_decay": 0.0}]
    modules: list[nn.Module] = [language]
    if task.ears:
        modules.append(task.ears.told)
        groups.append({"params": list(task.ears.told.parameters()), "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, settings.rate, (0.9, 0.97))
    loop = Loop(name, work(task.cfg), settings.steps, settings.minutes, modules, [optimizer], 0.995)
    batches = task.prompts.batches(settings.positions)
    judged = 0.0
    for part in loop:
        loop.rate(min(1, (loop.step + 1) / WARMUP) * min(1, FINAL + (1 - FINAL) * (1 - part) / (1 - HELD_RATE)))
        loss, figures = task(next(batches), noisy=True)
        descend(optimizer, loss, 1.0)
        loop.log(loss=loss, **figures)
        if loop.seconds - judged > 30:
            loop.report(**judge(task))
            judged = loop.seconds
    loop.report(**judge(task))


class Task:
    """The loss of a batch."""

    def __init__(
        self,
        cfg: DictConfig,
        language: Language,
        speech: Speech,
        quantizer: ResidualQuantizer | None,
        codes: Tensor | None,
    ) -> None:
        self.cfg, self.language, self.first = cfg, language, speech.first
        self.prompts = Prompts(cfg, speech)
        self.ears = Ears(cfg, language.speaker, speech) if language.speaker is not None else None
        self.heard = speech.first  # first codes as the encoder hears them, which is how a reference has them
        self.codes, self.latents = codes, None
        if quantizer is not None:
            self.heard, codes = codes[:, 0].long(), codes[:, 1:]
            self.codes = codes
            parts = (quantizer.sum(part[None].long())[0] for part in codes.split(1 << 18))
            self.latents = torch.cat(list(parts))  # [frames, size]
            self.spread = distances(language, self.latents)

    def __call__(self, batch: Batch, noisy: bool) -> tuple[Tensor, dict[str, Tensor]]:
        language = self.language
        rows, heads = language.first_rows()
        voices, traits = self.ears(batch.cloned, noisy) if self.ears else (None, None)
        with autocast(self.cfg):
            hidden = language.hidden(self.inputs(batch, rows, noisy, voices))
        wanted = torch.where(batch.next >= 0, self.first[batch.next.clamp(min=0)], -100)
        wanted = torch.where(batch.ends, self.prompts.end, wanted)
        spoken = wanted >= 0
        logits, wanted = hidden[spoken].float() @ heads.T, wanted[spoken]
        loss = F.cross_entropy(logits, wanted)
        figures = {"first": loss, "first_right": (logits.argmax(-1) == wanted).float().mean()}
        if traits is not None:
            loss = loss + TRAITS_WEIGHT * traits
            figures["traits"] = traits
        if self.latents is not None:
            predicted, by_group = self.acoustics(batch, hidden, rows, noisy)
            loss = loss + predicted
            figures |= {f"group{group}": value for group, value in enumerate(by_group, 1)}
        return loss, figures

    def inputs(self, batch: Batch, rows: Tensor, noisy: bool, voices: Tensor | None) -> Tensor:
        """[batch, positions, hidden]: text, control ids and past frames; some of the past changed or hidden.

        `voices` are the x-vectors [clones, hidden] of a batch that has clones.
        """
        language, settings = self.language, self.cfg.talker
        past = batch.frames.clamp(min=0)
        first = self.first[past]
        count = len(first)
        if noisy:
            other = self.first[torch.randint(len(self.first), first.shape)]
            first = torch.where(torch.rand(first.shape) < settings.noise, other, first)
        first = torch.where(batch.control == REFERENCE, self.heard[past], first)
        frame = F.embedding(first, rows)
        if self.latents is not None:
            said = language.said(self.codes[past][..., : language.predicted].long())
            if noisy:
                said = said * (torch.rand(count, 1, 1) > 0.1)
            frame = frame + said
        if noisy:
            hide = settings.hidden * torch.rand(count, 1) * (torch.rand(count, 1) < 0.7)
            frame = frame * (torch.rand(first.shape) >= hide)[..., None]
        control = F.embedding(batch.control.clamp(min=0), rows) * (batch.control >= 0)[..., None]
        if voices is not None:
            control = control.masked_scatter((batch.control == SPEAKER)[..., None], voices.to(control.dtype))
        return language.text(batch.text) + torch.where((batch.frames >= 0)[..., None], frame, control)

    def acoustics(self, batch: Batch, hidden: Tensor, rows: Tensor, noisy: bool) -> tuple[Tensor, list[Tensor]]:
        """The code predictor's loss, and that of each group by itself."""
        language = self.language
        places = torch.nonzero(batch.next >= 0)
        if noisy:
            places = places[torch.randint(len(places), (min(len(places), PREDICTED_POSITIONS),))]
        frames = batch.next[places[:, 0], places[:, 1]]
        taken, wanted, near = self.walk(self.latents[frames], noisy)
        embedded = [language.codebooks[group][taken[group]] @ language.acoustic_rows for group in range(len(taken) - 1)]
        start = [hidden[places[:, 0], places[:, 1]].float(), F.embedding(self.first[frames], rows)]
        with autocast(self.cfg):
            states = language.predict(torch.stack([*start, *embedded], 1))
        loss, total, figures = hidden.new_zeros((), dtype=torch.float32), 0.0, []
        for group, (heads, weight) in enumerate(zip(language.group_heads(), GROUP_WEIGHTS, strict=False)):
            likely = (states[:, group + 1].float() @ heads.T).log_softmax(-1)
            hard = F.nll_loss(likely, wanted[group])
            loss = loss + weight * (0.5 * hard - 0.5 * (near[group] * likely).sum(-1).mean())
            total += weight
            figures.append(hard)
        return loss / total, figures

    @torch.no_grad()
    def walk(self, rest: Tensor, noisy: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Codes taken for latents [count, size], group by group: the nearest, or often a near one while training.

        Also the nearest codes themselves, and how near each code is as a distribution.
        """
        taken, wanted, near = [], [], []
        for group, rows in enumerate(self.language.codebooks):
            far = rest.square().sum(-1, keepdim=True) - 2 * rest @ rows.T + rows.square().sum(-1)
            closeness = -far / self.spread[group]
            nearest = code = closeness.argmax(-1)
            if noisy:
                noise = -torch.log(-torch.log(torch.rand_like(far).clamp(1e-9, 1 - 1e-7)))
                code = torch.where(torch.rand(len(code)) < 0.5, (closeness + noise).argmax(-1), nearest)
            taken.append(code)
            wanted.append(nearest)
            near.append((2 * closeness).softmax(-1))
            rest = rest - rows[code]
        return taken, wanted, near


@torch.no_grad()
def distances(language: Language, latents: Tensor) -> list[float]:
    """The mean squared distance that is left after each group."""
    rest = latents[torch.randint(len(latents), (20_000,))]
    left = []
    for rows in language.codebooks:
        rest = rest - rows[(rest @ rows.T - rows.square().sum(-1) / 2).argmax(-1)]
        left.append(max(rest.square().sum(-1).mean().item(), 0.02 * latents.shape[1]))
    return left


@torch.no_grad()
def judge(task: Task) -> dict[str, float]:
    """Held-out utterances with their own text and with another's. A talker that hears its text tells them apart."""
    figures, prompts = {}, task.prompts
    for name, texts in (("right", prompts.held), ("wrong", np.roll(prompts.held, 1))):
        sums: dict[str, float] = {}
        for chosen in prompts.pieces(prompts.held, task.cfg.talker.positions):
            batch = prompts.build(prompts.held[chosen], texts[chosen])
            _, found = task(batch, noisy=False)
            for key, value in found.items():
                sums[key] = sums.get(key, 0.0) + value.item() * len(chosen) / len(prompts.held)
        figures |= {f"{name}_{key}": value for key, value in sums.items()}
    return figures


if __name__ == "__main__":
    main()
