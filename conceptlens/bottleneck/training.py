"""The minibatch loop of every bottleneck model that is trained by gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..checks import check_whole
from ..progress import bar
from .data import TrainingData

Loss = Callable[[TrainingData], Tensor]


def train(
    network: nn.Module,
    loss: Loss,
    data: TrainingData,
    *,
    max_epochs: int,
    lr: float,
    batch_size: int,
    random_state: int,
    weight_decay: float = 0.0,
    patience: int | None = None,
) -> list[dict[str, float]]:
    """Minimise a loss over minibatches, and leave `network` as it was after its best epoch.

    The best epoch is that of the least loss on ``data.held_out``, the last one if nothing is.

    Parameters
    ----------
    network : nn.Module
        In train mode for the steps, in eval mode for the held-out loss and at the end. Parameters
        that ask for no gradient stay.
    loss : callable
        The mean loss of a batch, as a scalar that depends on the network's parameters.
    data : TrainingData
        Rows, shuffled each epoch.
    max_epochs, batch_size : int
        The most epochs, and rows a step.
    lr, weight_decay : float
        AdamW's.
    random_state : int
        Fixes the order of the rows.
    patience : int, optional
        Stop after so many epochs without a better held-out loss. Default: never.

    Returns
    -------
    list of dict
        For each epoch "loss" and, if rows are held out, "held_out_loss".

    Raises
    ------
    FloatingPointError
        If the loss stops being finite.
    """
    check_whole(max_epochs, "max_epochs")
    check_whole(batch_size, "batch_size")
    parameters = [p for p in network.parameters() if p.requires_grad]
    steps = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(random_state)
    history: list[dict[str, float]] = []
    best, best_epoch, weights = math.inf, 0, network.state_dict()
    with bar("training", max_epochs, "epoch") as progress, torch.enable_grad():
        for epoch in range(max_epochs):
            network.train()
            total = torch.zeros((), dtype=torch.float64, device=data.features.device)
            for rows in torch.randperm(len(data), generator=generator).split(batch_size):
                mean: Tensor = loss(data[rows.to(data.features.device)])
                steps.zero_grad()
                mean.backward()
                steps.step()
                total += mean.detach() * len(rows)
            network.eval()
            figures = {"loss": float(total) / len(data)}
            if data.held_out is not None:
                figures["held_out_loss"] = mean_loss(loss, data.held_out, batch_size)
            if not all(map(math.isfinite, figures.values())):
                raise FloatingPointError(f"the loss is not finite in epoch {epoch}: lower lr={lr}")
            history.append(figures)
            progress.update()
            score = figures.get("held_out_loss", -epoch)
            if score < best:
                best, best_epoch = score, epoch
                weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            elif patience is not None and epoch - best_epoch >= patience:
                break
    network.load_state_dict(weights)
    return history


@torch.no_grad()
def mean_loss(loss: Loss, data: TrainingData, batch_size: int) -> float:
    """The mean loss over all rows, in batches."""
    batches = torch.arange(len(data), device=data.features.device).split(batch_size)
    return sum(float(loss(data[rows])) * len(rows) for rows in batches) / len(data)
