"""The training loop, as a state that can be put away between any two steps and taken up again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...distributed import all_reduce_, rank, world_size
from ...progress import bar
from . import checkpoint
from .formulas import Outcome, Step, Weights
from .settings import Settings
from .variants import VARIANTS
from .vectors import Vectors

# Parts of all steps: the learning rate rises, then a penalty does; at the end the rate falls.
WARM_UP, PENALTY_WARM_UP, COOL_DOWN = 0.05, 0.2, 0.2
# A unit is dead once it was off for this many vectors, or for an epoch if that is shorter.
DEAD_AFTER = 100_000
# A checkpoint is written this often, and after each epoch.
SECONDS = 60.0
# Steps between two looks at the running figures, which wait for the device.
REPORT = 50
MOMENTS = ("exp_avg", "exp_avg_sq")

Monitor = Callable[[], dict[str, float]]


class Training:
    """A fit: weights, optimiser, and where it stands.

    Attributes
    ----------
    weights : dict of Tensor
        For rows scaled so that E‖a‖² = C.
    number : int
        Steps done.
    history : list of dict
        R², L0 and the dead fraction of each epoch.
    """

    def __init__(self, vectors: Vectors, settings: Settings, device: torch.device) -> None:
        self.vectors, self.settings = vectors, settings
        self.variant = VARIANTS[settings.variant]
        n, c = vectors.shape
        mean, power, variance = vectors.moments(settings.random_state)
        _agree([n, power], "the processes were given different rows: give all of them to each")
        self.scale = (c / power) ** 0.5
        self.variance = variance * self.scale**2
        self.weights = start(settings, (mean * self.scale).to(device))
        # One number alone is not learnt by gradient: the loss sets it.
        self.learnt = {name: w.requires_grad_() for name, w in self.weights.items() if w.ndim}
        self.adam = torch.optim.Adam(self.learnt.values(), fused=True)
        for w in self.learnt.values():
            moments = {name: torch.zeros_like(w, requires_grad=False) for name in MOMENTS}
            self.adam.state[w] = {"step": torch.zeros((), device=device), **moments}
        self.silent = torch.zeros(settings.n_components, dtype=torch.int64, device=device)
        self.steps_per_epoch = -(-n // settings.batch_size)
        self.n_steps = settings.n_epochs * self.steps_per_epoch
        self.number = 0
        self.history: list[dict[str, float]] = []
        self._start_epoch()

    def run(self, folder: Path | None, monitor: Monitor | None) -> None:
        """Do the steps that are left, keeping checkpoints in `folder`."""
        kept = time.monotonic()
        with bar("autoencoder", self.n_steps, "steps") as progress:
            progress.update(self.number)
            while self.number < self.n_steps:
                epoch, done = divmod(self.number, self.steps_per_epoch)
                seed = self.settings.random_state + epoch
                for i, batch in enumerate(self.vectors.batches(self.settings.batch_size, seed)):
                    if i < done:
                        continue
                    self._step(batch)
                    progress.update()
                    if self.number % REPORT == 0:
                        progress.set_postfix(self._figures(), refresh=False)
                    due = self.number % self.steps_per_epoch and time.monotonic() - kept > SECONDS
                    if folder is not None and due:
                        self.keep(folder)
                        kept = time.monotonic()
                self._end_epoch(epoch, batch, monitor)
                progress.set_postfix(self.history[-1], refresh=False)
                if folder is not None:
                    self.keep(folder)

    def fitted(self) -> Weights:
        """The weights for rows as they came, unscaled."""
        fitted = {name: w.detach().clone() for name, w in self.weights.items()}
        for name in ("encoder_bias", "intercept", "magnitude_bias"):
            if name in fitted:
                fitted[name] /= self.scale
        if "log_threshold" in fitted:
            fitted["log_threshold"] -= math.log(self.scale)
        return fitted

    # -- one step ----------------------------------------------------------------------------

    def _step(self, batch: Tensor) -> None:
        rows = batch[rank() :: world_size()].to(self.silent.device, self.vectors.dtype)
        patience = min(DEAD_AFTER, self.vectors.shape[0])
        dead = (self.silent >= patience).nonzero().flatten()
        step = Step(self.number, self._sparsity(), len(batch), dead)
        self.adam.zero_grad()
        outcome = self.variant.loss(self.weights, rows * self.scale, step)
        outcome.loss.backward()
        self._sum_over_processes(outcome)
        dictionary = self.weights["components"]
        with torch.no_grad():
            _remove_parallel(dictionary)
            self.adam.param_groups[0]["lr"] = self._learning_rate()
            self.adam.step()
            dictionary.div_(torch.linalg.vector_norm(dictionary, dim=1, keepdim=True))
        self.silent = torch.where(outcome.active > 0, 0, self.silent + len(batch))
        self.error += outcome.error
        self.active += outcome.active
        self.rows += len(batch)
        self.number += 1

    def _sum_over_processes(self, outcome: Outcome) -> None:
        if world_size() > 1:
            gradients: list[Any] = [w.grad for w in self.learnt.values()]
            for tensor in (*gradients, outcome.error, outcome.active):
                all_reduce_(tensor)

    def _learning_rate(self) -> float:
        done, left = (self.number + 1) / self.n_steps, 1 - self.number / self.n_steps
        return self.settings.learning_rate * min(1.0, done / WARM_UP, left / COOL_DOWN)

    def _sparsity(self) -> float:
        if self.variant.counts:
            return self.settings.sparsity
        return self.settings.sparsity * min(1.0, self.number / self.n_steps / PENALTY_WARM_UP)

    # -- epochs ------------------------------------------------------------------------------

    def _start_epoch(self) -> None:
        self.error = torch.zeros((), dtype=torch.float64, device=self.silent.device)
        self.active = torch.zeros_like(self.silent)
        self.rows = 0

    def _check_finite(self) -> None:
        if not self.error.isfinite():
            raise FloatingPointError(
                f"the loss is not finite after {self.number} steps: lower learning_rate="
                f"{self.settings.learning_rate}"
            )

    def _figures(self) -> dict[str, float]:
        self._check_finite()
        return {
            "r2": 1 - float(self.error) / self.rows / self.variance,
            "l0": float(self.active.sum()) / self.rows,
            "dead": float((self.active == 0).double().mean()),
        }

    def _end_epoch(self, epoch: int, batch: Tensor, monitor: Monitor | None) -> None:
        figures = self._figures()
        self.history.append(figures | (monitor() if monitor else {}))
        # A penalty starves units; as in DN-CBM they begin anew, until the rate falls.
        period = max(1, min(10, self.settings.n_epochs // 5))
        left = self.settings.n_epochs - epoch - 1
        if not self.variant.counts and (epoch + 1) % period == 0:
            if left > COOL_DOWN * self.settings.n_epochs:
                self._resample(batch, epoch)
        self._start_epoch()

    @torch.no_grad()
    def _resample(self, batch: Tensor, epoch: int) -> None:
        """Let dead units stand for rows that the others reconstruct badly."""
        dead = (self.active == 0).nonzero().flatten()
        if not 0 < len(dead) < len(self.active):
            return
        w = self.weights
        rows = batch.to(self.silent.device, self.vectors.dtype) * self.scale
        rest = rows - self.variant.codes(w, rows, 0) @ w["components"] - w["intercept"]
        generator = torch.Generator().manual_seed(self.settings.random_state + epoch)
        odds = rest.square().sum(1).square().double().cpu()
        drawn = torch.multinomial(odds, len(dead), replacement=True, generator=generator)
        directions = normalize(rest[drawn.to(rest.device)], dim=1)
        alive = w["encoder"][self.active > 0].norm(dim=1).mean()
        fresh = start(self.settings, w["intercept"]) | {
            "components": w["components"].index_copy(0, dead, directions),
            "encoder": w["encoder"].index_copy(0, dead, 0.2 * alive * directions),
        }
        for name, weight in self.learnt.items():
            if name != "intercept":
                weight[dead] = fresh[name][dead]
                for moment in MOMENTS:
                    self.adam.state[weight][moment][dead] = 0

    # -- checkpoints -------------------------------------------------------------------------

    def keep(self, folder: Path) -> None:
        """Write all that the next step depends on, from process 0."""
        self._check_finite()
        if rank() == 0:
            checkpoint.write(folder, self._tensors(), self._record())

    def resume(self, folder: Path) -> None:
        """Go back to where the checkpoint in `folder` stands, if there is one.

        Raises
        ------
        ValueError
            If it is damaged, or of other settings or data.
        """
        found = checkpoint.read(folder, self._tensors(), self._record())
        if found is not None:
            tensors, record = found
            self.number, self.rows, self.history = (
                record[name] for name in ("number", "rows", "history")
            )
            with torch.no_grad():
                for name, tensor in self._tensors().items():
                    tensor.copy_(tensors[name])
                for w in self.learnt.values():
                    self.adam.state[w]["step"].fill_(self.number)
        _agree([self.number], f"the processes see different files in {folder}: share the disk")

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"weights.{name}": w.detach() for name, w in self.weights.items()}
        for name, w in self.learnt.items():
            tensors |= {f"{moment}.{name}": self.adam.state[w][moment] for moment in MOMENTS}
        return tensors | {"silent": self.silent, "active": self.active, "error": self.error}

    def _record(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "data": self.vectors.fingerprint,
            "number": self.number,
            "rows": self.rows,
            "history": self.history,
        }


def _agree(figures: list[float], complaint: str) -> None:
    """Raise the complaint in a process whose figures are not those of all."""
    own = torch.tensor(figures, dtype=torch.float64)
    if not torch.allclose(all_reduce_(own.clone()), world_size() * own, rtol=1e-12, atol=0):
        raise ValueError(complaint)


def _remove_parallel(dictionary: Tensor) -> None:
    """Take from the gradient what would only change the norms of the rows."""
    gradient: Any = dictionary.grad
    along = torch.bmm(gradient[:, None], dictionary[..., None])[:, 0]
    gradient.addcmul_(along, dictionary, value=-1)


def start(settings: Settings, intercept: Tensor) -> Weights:
    """Random directions for the dictionary, and an encoder that is its transpose."""
    k, c = settings.n_components, len(intercept)
    generator = torch.Generator().manual_seed(settings.random_state)
    directions = normalize(torch.randn(k, c, generator=generator), dim=1)
    weights = {
        "encoder": directions,
        "encoder_bias": torch.zeros(k),
        "components": directions.clone(),
        "intercept": intercept,
    }
    weights |= VARIANTS[settings.variant].more(k, c)
    return {name: w.to(intercept) for name, w in weights.items()}
