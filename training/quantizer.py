"""Residual vector quantisation whose rows are running means of what they stand for (van den Oord et al. 2017, app. A).

The number of groups that are heard differs between utterances, so that the first groups carry the words. A group
beyond `free` keeps its row 0 at zero: what a code predictor says that leaves the group out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DECAY = 0.98
DEAD = 0.06  # of a row's fair share; rows used less start again from a random vector
KMEANS = 6  # rounds


class ResidualQuantizer(nn.Module):
    def __init__(self, groups: int, rows: int, size: int, free: int) -> None:
        super().__init__()
        self.free = free
        self.register_buffer("rows", torch.randn(groups, rows, size) * 0.1)
        self.register_buffer("sums", self.rows.clone())
        self.register_buffer("counts", torch.ones(groups, rows))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def nearest(self, group: int, x: Tensor) -> Tensor:
        rows = self.rows[group]
        return (x @ rows.T - rows.square().sum(-1) / 2).argmax(-1)

    def codes(self, x: Tensor) -> Tensor:
        """[..., size] to [..., groups]."""
        codes = []
        for group in range(len(self.rows)):
            code = self.nearest(group, x)
            x = x - F.embedding(code, self.rows[group])
            codes.append(code)
        return torch.stack(codes, -1)

    def sum(self, codes: Tensor, heard: Tensor | None = None) -> Tensor:
        """The sum of the rows of codes [batch, frames, groups], of the first `heard` [batch] groups or of all."""
        total = 0.0
        for group in range(codes.shape[-1]):
            rows = F.embedding(codes[..., group], self.rows[group])
            total = total + (rows if heard is None else rows * (heard > group)[:, None, None])
        return total

    def forward(self, x: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
        """Quantises x [batch, frames, size] while training: the sum of the heard rows and the commitment loss.

        The rows learn too, but not after `eval()`.
        """
        flat = x.flatten(0, 1)
        heard = heard.repeat_interleave(x.shape[1])
        rest, total, commitment = flat, torch.zeros_like(flat), flat.new_zeros(())
        for group in range(len(self.rows)):
            with torch.no_grad():
                code = self.nearest(group, rest)
            rows = F.embedding(code, self.rows[group])
            if self.training:
                self._learn(group, rest.detach(), code)
            used = heard > group
            commitment = commitment + ((rest - rows).square().mean(-1) * used).mean()
            total = total + rows * used[:, None]
            rest = rest - rows
        through = flat + (total - flat).detach()
        # Where nothing of x is heard its gradient means nothing, and would blow x up.
        through = through * (heard > 0)[:, None]
        return through.view_as(x), commitment / len(self.rows)

    @torch.no_grad()
    def take(self, rows: Tensor) -> None:
        """Goes on from trained rows [groups, rows, size]."""
        self.rows.copy_(rows)
        self.sums.copy_(rows)
        self.counts.fill_(1.0)
        self.started.fill_(True)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Rows by k-means of vectors [count, size], group after group."""
        for group in range(len(self.rows)):
            self.rows[group] = x[torch.randint(len(x), (self.rows.shape[1],), device=x.device)]
            for _ in range(KMEANS):
                sums, counts = self._gather(x, self.nearest(group, x))
                self.rows[group] = torch.where(
                    counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], self.rows[group]
                )
            self.counts[group] = 2.0
            self.sums[group] = 2.0 * self.rows[group]
            x = x - F.embedding(self.nearest(group, x), self.rows[group])
        self._pin()
        self.started.fill_(True)

    @torch.no_grad()
    def _learn(self, group: int, x: Tensor, code: Tensor) -> None:
        sums, counts = self._gather(x, code)
        self.counts[group].lerp_(counts, 1 - DECAY)
        self.sums[group].lerp_(sums, 1 - DECAY)
        share = len(x) / self.rows.shape[1]
        dead = self.counts[group] < DEAD * share
        fresh = x[torch.randint(len(x), (len(dead),), device=x.device)]
        self.counts[group] = torch.where(dead, share / 4, self.counts[group])
        self.sums[group] = torch.where(dead[:, None], fresh * share / 4, self.sums[group])
        self.rows[group] = self.sums[group] / self.counts[group][:, None]
        self._pin()

    def _gather(self, x: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.rows.shape[1]
        counts = x.new_zeros(rows).index_add_(0, code, torch.ones_like(x[:, 0]))
        return x.new_zeros(rows, x.shape[1]).index_add_(0, code, x), counts

    def _pin(self) -> None:
        self.rows[self.free :, 0] = 0
