"""A training loop's book-keeping: how far it is, its averaged weights, its curve, and resuming after a stop."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich import print
from torch import Tensor, nn
from torch.optim import Optimizer

from training.step import TrainingError

LOG_SECONDS, SAVE_SECONDS = 20, 120
WARMUPS = 3  # steps before one is recorded


def adam(parameters: list[nn.Parameter], rate: float) -> torch.optim.AdamW:
    """An optimizer whose rate and state are tensors beside the parameters, so that its steps can be recorded."""
    on_gpu = parameters[0].device.type == "cuda"
    return torch.optim.AdamW(parameters, torch.tensor(rate), (0.8, 0.99), weight_decay=1e-3, capturable=on_gpu)


class Recorded:
    """A step of training whose shapes never change: on a GPU recorded as a CUDA graph, and from then on replayed.

    The step gives figures by name. One of small networks launches thousands of kernels, one by one from Python, which a
    graph does at once. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, step: Callable[[], dict[str, Tensor]], device: str) -> None:
        self.step, self.device = step, device
        self.graph: torch.cuda.CUDAGraph | None = None
        self.figures: dict[str, Tensor] = {}

    def __call__(self) -> dict[str, Tensor]:
        if self.device != "cuda":
            return self.step()
        if self.graph is None:
            self._record()
        assert self.graph is not None
        self.graph.replay()
        return {name: figure.detach().clone() for name, figure in self.figures.items()}

    def _record(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are chosen and optimizers get their state
            for _ in range(WARMUPS):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.figures = self.step()


def descend(optimizer: Optimizer, loss: Tensor, largest: float) -> None:
    """One step down the gradient of a loss, its norm clipped."""
    optimizer.zero_grad()
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, largest)
    optimizer.step()


class Loop:
    """Iterating gives the part done, from 0 to 1, once a step, until `steps` or `minutes` are over.

    `modules` are trained, `optimizers` and `extra` tensors are saved with them. The curve is <name>.jsonl in `folder`.
    After the loop, and inside `averaged()`, the first module's trained parameters are their running averages.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        steps: int,
        minutes: float,
        modules: list[nn.Module],
        optimizers: list[Optimizer],
        decay: float,
    ) -> None:
        self.name, self.folder, self.steps, self.minutes = name, folder, steps, minutes
        self.modules, self.optimizers = modules, optimizers
        self.parameters = [p for p in modules[0].parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.decay = decay
        self.rates = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]
        self.step, self.seconds = 0, 0.0
        self._sums: dict[str, list[Tensor]] = defaultdict(list)

    @property
    def state(self) -> Path:
        return self.folder / f"{self.name}.state"

    def __iter__(self) -> Iterator[float]:
        self._resume()
        before, began = self.seconds, time.monotonic()
        logged = saved = began
        while (part := max(self.step / self.steps, self.seconds / self.minutes / 60)) < 1:
            yield part
            self.step += 1
            self._update_average()
            now = time.monotonic()
            self.seconds = before + now - began
            if now - logged > LOG_SECONDS or self.step == self.steps:
                self.report()
                logged = now
            if now - saved > SAVE_SECONDS:
                self._save()
                saved = now
        self._save()
        self._swap()

    def rate(self, factor: float) -> None:
        """Sets each learning rate to its own one times `factor`."""
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate * factor)
                else:
                    group["lr"] = rate * factor

    def log(self, **figures: Tensor) -> None:
        for name, figure in figures.items():
            self._sums[name].append(figure.detach())

    def report(self, **more: float) -> None:
        """Prints the means since the last report and adds them to the curve."""
        figures = {name: torch.stack(values).float().mean().item() for name, values in self._sums.items()} | more
        self._sums.clear()
        line = {"step": self.step, "seconds": round(self.seconds, 1)}
        line |= {name: round(figure, 4) for name, figure in figures.items()}
        print(self.name, " ".join(f"{name} {figure:g}" for name, figure in line.items()), flush=True)
        with (self.folder / f"{self.name}.jsonl").open("a") as curve:
            curve.write(json.dumps(line) + "\n")
        if not all(map(math.isfinite, figures.values())):
            raise FloatingPointError(f"{self.name}: step {self.step} is not finite")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        self._swap()
        yield
        self._swap()

    @torch.no_grad()
    def _update_average(self) -> None:
        torch._foreach_lerp_(self.average, self.parameters, max(1 - self.decay, 1 / (1 + self.step / 10)))

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.average, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def _save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "modules": [module.state_dict() for module in self.modules],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average,
        }
        partial = self.state.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(self.state)

    def _resume(self) -> None:
        if not self.state.exists():
            return
        state = torch.load(self.state, map_location=self.average[0].device, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        for module, weights in zip(self.modules, state["modules"], strict=True):
            module.load_state_dict(weights)
        for optimizer, moments in zip(self.optimizers, state["optimizers"], strict=True):
            try:
                optimizer.load_state_dict(moments)
            except ValueError as error:
                raise TrainingError(f"{self.state} is of a run that trained other parameters; delete it") from error
        self.average = state["average"]
        print(f"{self.name}: goes on at step {self.step}")
