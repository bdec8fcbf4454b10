"""CRAFT: the concepts a classifier uses for a class, from crops of its pictures."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._version import __version__
from .backbone import Backbone
from .batching import in_batches
from .checks import check_backbone, check_seed, check_whole
from .class_pictures import ClassPictures, select
from .crops import CropSet
from .explanation import Concept, Explanation
from .extraction import Extractor, as_extractor
from .extraction.nmf import NMF
from .images import Pictures, crop_boxes, cut, denormalise, position_boxes, resize
from .importance import ESTIMATORS
from .importance.result import Importance
from .local import logit_parts
from .maps import codes_on_grid
from .metrics.extraction import relative_error
from .metrics.faithfulness import c_deletion, c_insertion, c_mu_fidelity
from .model import DictionaryModel

# Of the integration along all pictures' codes; what it misses is told as a part of its own.
FEW_STEPS = 32
CROPS = ("resized", "positions")


class CRAFT:
    """Concept recursive activation factorisation.

    Crops of the class's pictures are put through the trunk, their activations are factorised
    into concepts, and each concept's total Sobol index tells how much of the class's score it
    decides. `decompose` is the recursion: it splits a concept at an earlier layer.

    Parameters
    ----------
    backbone : Backbone
        The classifier, cut at a layer.
    n_concepts : int
        Number k of concepts.
    patch_size : int
        Side of the square crops in pixels of the network's input; stride 0.8 × `patch_size`.
    crops : {"resized", "positions"}
        What the dictionary is learnt from. As in the paper, crops are resized to the network's
        input and each costs a pass through the trunk; the positions of the pictures' own
        activations cost none, and are shown as crops around them, though they see further.
    extractor : Extractor or scikit-learn estimator, optional
        Default: ``NMF(n_concepts, random_state=seed)``, which needs a layer after a ReLU.
    importance : str
        What ranks the concepts in place of the total Sobol index: a name in
        `conceptlens.importance.ESTIMATORS`.
    n_designs : int
        Number N of design points of the Sobol indices, a power of two.
    batch_size : int
        The most pictures, crops or code grids the network is given at once.
    seed : int
        Fixes the factorisation and the design.

    References
    ----------
    Fel et al., "CRAFT: Concept Recursive Activation FacTorization for Explainability", CVPR 2023.

    Examples
    --------
    >>> from torch import nn
    >>> from conceptlens import Backbone
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    >>> craft = CRAFT(Backbone(model, "1"), n_concepts=3, patch_size=16)
    >>> explanation = craft.explain(torch.rand(40, 3, 32, 32))
    >>> [concept.importance >= 0 for concept in explanation.concepts]
    [True, True, True]
    """

    def __init__(
        self,
        backbone: Backbone,
        n_concepts: int = 10,
        patch_size: int = 64,
        *,
        crops: str = "resized",
        extractor: Extractor | None = None,
        importance: str = "sobol",
        n_designs: int = 64,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        check_backbone(backbone)
        for name, value in (("n_concepts", n_concepts), ("patch_size", patch_size)):
            check_whole(value, name)
        check_whole(n_designs, "n_designs", 2)
        check_whole(batch_size, "batch_size")
        check_seed(seed)
        self.backbone = backbone
        self.n_concepts = n_concepts
        self.patch_size = patch_size
        if crops not in CROPS:
            raise ValueError(f"crops must be one of {list(CROPS)}, got {crops!r}")
        self.crops = crops
        self.extractor = None if extractor is None else as_extractor(extractor)
        if importance not in ESTIMATORS:
            raise ValueError(f"importance must be one of {list(ESTIMATORS)}, got {importance!r}")
        self.importance = importance
        self.n_designs = n_designs
        self.batch_size = batch_size
        self.seed = seed

    def explain(
        self, images: Any, target: int | str | None = None, *, predicted_only: bool = True
    ) -> Explanation:
        """Explain the class `target` on those of `images` that the model gives to it.

        Memory holds the pictures that are explained, 4 bytes a number: 3·H·W pixels twice, P·C
        activations, m·C of m crops, and P·k codes. Pictures of other classes are dropped batch by
        batch if a `target` is given; otherwise all are held until the class is known.

        Parameters
        ----------
        images : folder, list, Dataset, DataLoader or Tensor
            As `Pictures` takes them; the backbone's transform is applied.
        target : int or str, optional
            The class, by index or name. Default: the class predicted most often.
        predicted_only : bool
            Leave out the pictures that the model gives to another class.

        Raises
        ------
        ValueError
            For an unknown class, when no picture is given to the class, when activations are not
            finite, and when the extractor needs nonnegative activations and the layer has others.
        """
        bb = self.backbone
        pictures = select(
            bb,
            Pictures.of(images, bb.transform),
            None if target is None else bb.class_index(target),
            predicted_only,
            self.batch_size,
        )
        rows = self.crop_activations(pictures.x, pictures.activations)
        return self.explain_pictures(pictures, rows)

    def explain_pictures(self, pictures: ClassPictures, rows: Tensor) -> Explanation:
        """Explain a class on pictures that went through the network already.

        Parameters
        ----------
        pictures : ClassPictures
            The pictures of the class.
        rows : Tensor
            ``(n, m, C)``, what `crop_activations` returned for them.
        """
        extractor, crop_set = self._extract(pictures, rows)
        cm = DictionaryModel(self.backbone, extractor)
        codes = in_batches(
            lambda a: extractor.transform(a.flatten(0, 1)).unflatten(0, a.shape[:2]),
            pictures.activations,
            self.batch_size,
        )
        importance = self._importance(cm, codes, pictures.target)
        concepts = [
            Concept(
                index=int(i),
                name=cm.concept_names[i],
                importance=float(importance.values[i]),
                stderr=float(importance.stderr[i]),
                crops=crop_set.best(i),
            )
            for i in importance.order
        ]
        has_grid = self.backbone.grid != (1, 1)
        return Explanation(
            target=importance.target,
            importance=importance,
            concepts=concepts,
            pictures=denormalise(pictures.x, self.backbone.transform).cpu(),
            picture_names=pictures.names,
            concept_maps=codes_on_grid(cm, codes).cpu() if has_grid else codes.mT[..., None].cpu(),
            components=torch.as_tensor(extractor.components_).cpu(),
            scores=pictures.logits.softmax(1)[:, pictures.target].cpu(),
            metrics={
                "crop reconstruction error": relative_error(
                    crop_set.rows, extractor.inverse_transform(crop_set.codes)
                ),
                **self._fidelity(cm, codes, pictures),
                **self._faithfulness(cm, codes, importance, pictures.target),
            },
            provenance=self._provenance(pictures, crop_set, importance.method, extractor),
            logit_parts=logit_parts(
                cm,
                codes,
                pictures.logits,
                pictures.target,
                batch_size=self.batch_size,
                max_steps=FEW_STEPS,
            ),
            model=cm,
            crop_set=crop_set,
        )

    def crop_activations(self, x: Tensor, activations: Tensor) -> Tensor:
        """Compute the activations that the dictionary is learnt from.

        Parameters
        ----------
        x : Tensor
            Pictures ``(B, 3, H, W)`` as the network takes them.
        activations : Tensor
            Theirs, ``(B, P, C)``.

        Returns
        -------
        Tensor
            ``(B, m, C)``: of each picture's m crops the activations averaged over the grid; of
            "positions" those of the grid themselves.
        """
        if self.crops == "positions":
            return activations[:, self.backbone.n_prefix :]
        boxes = self._boxes(x)
        at_once = max(1, self.batch_size // len(boxes))  # so that few cut crops lie in memory
        return in_batches(lambda some: self._pooled(some, boxes), x, at_once, "pictures' crops")

    def _pooled(self, x: Tensor, boxes: Tensor) -> Tensor:
        """The activations ``(B, m, C)`` of crops resized to the pictures' size, averaged."""
        bb, size = self.backbone, (x.shape[-2], x.shape[-1])

        def pooled(patches: Tensor) -> Tensor:
            return bb.activations(resize(patches, size))[:, bb.n_prefix :].mean(1)

        rows = in_batches(pooled, cut(x, boxes).flatten(0, 1), self.batch_size)
        return rows.unflatten(0, (len(x), len(boxes)))

    def _boxes(self, x: Tensor) -> Tensor:
        """Where the crops of each picture lie, ``(m, 4)``."""
        size = (x.shape[-2], x.shape[-1])
        if self.crops == "positions":
            return position_boxes(size, self.backbone.grid, self.patch_size)
        return crop_boxes(size, self.patch_size)

    def _extract(self, pictures: ClassPictures, rows: Tensor) -> tuple[Extractor, CropSet]:
        """Fit the dictionary on the crops' activations ``(n, m, C)``."""
        n, m = rows.shape[:2]
        rows = rows.flatten(0, 1)
        extractor = self.extractor
        if extractor is None:
            extractor = NMF(self.n_concepts, random_state=self.seed)
        if extractor.requires_nonnegative and rows.min() < 0:
            raise ValueError(self._sign_error(float(rows.min())))
        codes = extractor.fit_transform(rows)
        boxes, owners = self._boxes(pictures.x).repeat(n, 1), torch.arange(n).repeat_interleave(m)
        return extractor, CropSet(pictures.x, boxes, owners, rows, codes)

    def _importance(self, cm: DictionaryModel, codes: Tensor, target: int) -> Importance:
        sampled = self.importance.startswith("sobol")
        options = {"n_designs": self.n_designs} if sampled else {}
        return ESTIMATORS[self.importance](
            cm, codes, target, seed=self.seed, batch_size=self.batch_size, **options
        )

    def _sign_error(self, lowest: float) -> str:
        layers = [
            info.name
            for info in self.backbone.layers()
            if info.nonnegative and info.layout is not None and info.layout.grid != (1, 1)
        ]
        remedy = f"cut at one without, such as {layers[-1]!r}, or" if layers else "pass"
        return (
            f"the activations of layer {self.backbone.layer!r} hold negative values (down to "
            f"{lowest:.3g}) and {type(self.extractor or NMF()).__name__} needs nonnegative ones: "
            f"{remedy} extractor=SemiNMF({self.n_concepts})"
        )

    def _fidelity(
        self, cm: DictionaryModel, codes: Tensor, pictures: ClassPictures
    ) -> dict[str, float]:
        """How well the network's output and activations are rebuilt from the codes."""
        with torch.no_grad():
            rebuilt = in_batches(cm.classify, codes, self.batch_size)
        true = pictures.logits
        a = pictures.activations.flatten(0, 1)
        error = relative_error(a, cm.extractor.inverse_transform(codes.flatten(0, 1)))
        difference = (rebuilt - true)[:, pictures.target].abs().mean()
        return {
            "picture reconstruction error": error,
            "prediction agreement": float((rebuilt.argmax(1) == true.argmax(1)).float().mean()),
            "mean logit difference": float(difference),
        }

    def _faithfulness(
        self, cm: DictionaryModel, codes: Tensor, importance: Importance, target: int
    ) -> dict[str, float]:
        """How well the importance tells what removing or adding concepts does to the logit."""
        b = self.batch_size
        metrics = {
            "C-Deletion": c_deletion(cm, codes, target, importance, batch_size=b).auc,
            "C-Insertion": c_insertion(cm, codes, target, importance, batch_size=b).auc,
        }
        if codes.shape[2] > 1:
            fidelity = c_mu_fidelity(cm, codes, target, importance, n_subsets=32, batch_size=b)
            metrics["C-µFidelity"] = fidelity.mean
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def _provenance(
        self, pictures: ClassPictures, crop_set: CropSet, method: str, extractor: Extractor
    ) -> dict[str, Any]:
        return {
            "conceptlens": __version__,
            "torch": torch.__version__,
            "model": type(self.backbone.model).__name__,
            "layer": self.backbone.layer,
            "fingerprint": self.backbone.fingerprint(),
            "target index": pictures.target,
            "extractor": repr(extractor),
            "importance": method,
            "designs": self.n_designs,
            "patch size": self.patch_size,
            "crops": len(crop_set.boxes),
            "crops are": self.crops,
            "pictures given": pictures.n_given,
            "pictures used": len(pictures.names),
            "predicted only": pictures.predicted_only,
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        return (
            f"CRAFT({self.backbone!r}, n_concepts={self.n_concepts}, "
            f"patch_size={self.patch_size}, seed={self.seed})"
        )
