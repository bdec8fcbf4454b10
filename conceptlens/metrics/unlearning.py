"""How well a classifier has forgotten a class, and what it has kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..batching import in_batches
from ..cutting import frozen

BATCH = 256  # pictures a forward pass


@dataclass(frozen=True)
class UnlearningScores:
    """How well a classifier has forgotten a class and kept the others.

    Attributes
    ----------
    forget_accuracy, retained_accuracy : float
        On pictures that it was not trained on, of the forgotten class and of the others.
    membership_auc : float
        Of telling the forgotten class's training pictures from others of the class by the loss
        on their label: 0.5 where nothing gives away which were trained on.
    output_distance : float
        Mean total variation between its probabilities and the reference's, from 0 to 1, on
        pictures that neither was trained on; NaN without reference.
    parameter_distance : float
        ‖θ − θ_ref‖ / ‖θ_ref‖; NaN without reference.
    """

    forget_accuracy: float
    retained_accuracy: float
    membership_auc: float
    output_distance: float
    parameter_distance: float


def unlearning_scores(
    model: nn.Module,
    forgotten: int,
    trained: tuple[Tensor, Tensor],
    unseen: tuple[Tensor, Tensor],
    reference: nn.Module | None = None,
) -> UnlearningScores:
    """Judge a classifier that shall have forgotten a class.

    Parameters
    ----------
    model : nn.Module
        Any classifier: unlearned, fine-tuned, trained from scratch or the original one.
    forgotten : int
        The class.
    trained, unseen : pair of Tensor
        Pictures ``(n, 3, H, W)`` and labels ``(n,)``: what the original was trained on, and a
        test set.
    reference : nn.Module, optional
        The classifier trained from scratch without the class.

    References
    ----------
    Yeom et al., "Privacy Risk in Machine Learning", 2018, for the attack by the loss.
    """
    from sklearn.metrics import roc_auc_score

    seen = trained[1].cpu() == forgotten
    new = unseen[1].cpu() == forgotten
    if not (seen.any() and new.any() and (~new).any()):
        raise ValueError(
            f"trained and unseen must both hold pictures of class {forgotten}, and unseen also "
            f"others: got {int(seen.sum())}, {int(new.sum())} and {int((~new).sum())}"
        )
    logits = _logits(model, unseen[0])
    right = (logits.argmax(1) == unseen[1].cpu()).double()
    members = _logits(model, trained[0][seen.to(trained[0].device)])
    confidence = torch.cat([members, logits[new]]).double().log_softmax(1)[:, forgotten]
    is_member = [1] * len(members) + [0] * int(new.sum())
    outputs = parameters = float("nan")
    if reference is not None:
        difference = logits.softmax(1) - _logits(reference, unseen[0]).softmax(1)
        outputs = float(difference.abs().sum(1).mean() / 2)
        one, two = (
            nn.utils.parameters_to_vector(m.parameters()).detach() for m in (model, reference)
        )
        parameters = float((one - two).norm() / two.norm())
    return UnlearningScores(
        float(right[new].mean()),
        float(right[~new].mean()),
        float(roc_auc_score(is_member, confidence.numpy())),
        outputs,
        parameters,
    )


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    device = next(model.parameters()).device
    with frozen(model), torch.no_grad():
        return in_batches(lambda x: model(x.to(device)).float().cpu(), images, BATCH)
