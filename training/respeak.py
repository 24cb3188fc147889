"""The whole corpus in the talker's words: the acoustic codes that the code predictor says for the true first codes.

What said.npz holds already stays, so that each of two talkers can say its own voices. Each frame hangs on those before
it. Instead of one frame after another, all are said at once and said again with what was said as their past; what a
frame says hardly changes after a few rounds.
"""

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from rich import print
from safetensors.torch import load_file
from torch import Tensor

from training import dataset
from training.checkpoint import configuration
from training.codec import autocast
from training.prompts import Batch
from training.step import corpus, on_device, step, work
from training.talker import Language, Task, acoustics

ROUNDS = 4


@step
@torch.no_grad()
def main(cfg: DictConfig) -> None:
    on_device(cfg)
    config = configuration(cfg)
    speech = dataset.load(cfg, corpus(cfg)["train"], waveform=config.speaker_encoder_config is not None)
    quantizer, codes = acoustics(cfg)
    language = Language(cfg, config, quantizer).to(cfg.device)
    language.load_state_dict(load_file(work(cfg) / "predictor.safetensors", device=cfg.device))
    task = Task(cfg, language, speech, quantizer, codes)
    task.codes = codes[:, 1 : 1 + language.predicted].clone()
    prompts = task.prompts
    everything = prompts.asked[np.argsort(prompts.lengths[prompts.asked])]
    changed, frames = torch.zeros(ROUNDS), 0
    for places in prompts.pieces(everything, cfg.talker.positions):
        batch = prompts.build(everything[places], everything[places])
        spoken = batch.next >= 0
        for number in range(ROUNDS):
            said = say(task, batch, spoken)
            changed[number] += (said != task.codes[batch.next[spoken]]).float().mean(1).sum()
            task.codes[batch.next[spoken]] = said
        frames += len(said)
    frames_asked = np.repeat(np.isin(np.arange(len(speech.lengths)), prompts.asked), speech.lengths)
    said_now = np.where(frames_asked[:, None], task.codes.cpu().numpy(), -1)
    path = work(cfg) / "said.npz"
    if path.exists():
        with np.load(path) as stored:
            said_now = np.where(stored["codes"] >= 0, stored["codes"], said_now)
    partial = work(cfg) / "said.partial.npz"
    np.savez(partial, codes=said_now.astype(np.int16))
    partial.rename(path)
    print(f"changed in each round: {[round(share, 3) for share in (changed / frames).tolist()]}")


def say(task: Task, batch: Batch, spoken: Tensor) -> Tensor:
    """The likeliest acoustic codes [count, groups] of all frames that a batch predicts."""
    language = task.language
    rows, _ = language.first_rows()
    heads = language.group_heads()
    voices = task.ears(batch.cloned, noisy=False)[0] if task.ears else None
    with autocast(task.cfg):
        hidden = language.hidden(task.inputs(batch, rows, noisy=False, voices=voices))[spoken].float()
    inputs = [hidden, F.embedding(task.first[batch.next[spoken]], rows)]
    said: list[Tensor] = []
    for group in range(language.predicted):
        with autocast(task.cfg):
            state = language.predict(torch.stack(inputs, 1))[:, -1]
        said.append((state.float() @ heads[group].T).argmax(-1))
        inputs.append(F.embedding(said[-1], language.codebooks[group]) @ language.acoustic_rows)
    return torch.stack(said, -1).short()


if __name__ == "__main__":
    main()
