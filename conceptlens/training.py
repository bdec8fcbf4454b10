"""Training a classifier on pictures in memory, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .progress import bar


def train_epochs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    n_epochs: int,
    lr: float,
    batch_size: int = 64,
    weight_decay: float = 1e-3,
    seed: int = 0,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Iterator[int]:
    """Train `model` in place by AdamW, the learning rate rising and falling once.

    Yields 0 before the first epoch and the number of each when it is over, so that the caller
    can look at the model then; it is in train mode during epochs and in eval mode at each yield.

    Parameters
    ----------
    images : Tensor
        ``(n, 3, H, W)``, preprocessed; moved to the model's device batch by batch.
    labels : Tensor
        ``(n,)``, integers.
    lr : float
        The highest learning rate.
    seed : int
        Fixes the order of the pictures, and what `augment` draws.
    augment : callable, optional
        Changes a batch of pictures before each step, at random by the generator that it is given.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    n_steps = n_epochs * math.ceil(len(images) / batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=n_steps)
    with bar(f"training {type(model).__name__}", n_steps, "step") as progress:
        for epoch in range(n_epochs):
            model.eval()
            yield epoch
            model.train()
            for rows in torch.randperm(len(images), generator=generator).split(batch_size):
                x, y = (t[rows.to(t.device)].to(device) for t in (images, labels))
                x = x if augment is None else augment(x, generator)
                loss = nn.functional.cross_entropy(model(x), y)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                progress.update()
    model.eval()
    yield n_epochs
