"""What the steps share: their configuration, the work folder, and errors in one line."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import hydra
from omegaconf import DictConfig

CONF = str(Path(__file__).parent / "conf")


class TrainingError(Exception):
    """A step that cannot run; the message is one line for people: what is missing, where, what to do."""


def step(run: Callable[[DictConfig], None]) -> Callable[[], None]:
    """A step's `main`: reads conf/config.yaml with the command line's overrides; errors in one line."""

    @wraps(run)
    def guarded(cfg: DictConfig) -> None:
        try:
            run(cfg)
        except TrainingError as error:
            sys.exit(f"error: {error}")
        except FileNotFoundError as error:
            sys.exit(f"error: {error}; if a step before this one writes it (training/README.md), run that first")

    return hydra.main(version_base=None, config_path=CONF, config_name="config")(guarded)


def on_device(cfg: DictConfig) -> None:
    """New tensors are on conf's device, and random numbers start from its seed."""
    import torch  # here: the processes that speak need no torch

    torch.set_default_device(cfg.device)
    torch.manual_seed(cfg.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark_limit = 4  # of a convolution's kernels: to time more takes a minute of each run


def work(cfg: DictConfig) -> Path:
    folder = Path(cfg.work)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def corpus(cfg: DictConfig) -> dict[str, list[str]]:
    """The texts, {"train": [...], "held": [...]}. Raises TrainingError before the corpus step has run."""
    path = work(cfg) / "corpus.json"
    if not path.exists():
        raise TrainingError(f"{path} is missing; run python -m training.corpus first")
    return json.loads(path.read_text())
