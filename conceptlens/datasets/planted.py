"""`PlantedConcepts`: pictures whose concepts, places and class rule are known exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .distribution import all_vectors, concept_table, total_indices
from .drawing import WHOLE, Drawing
from .rules import Rule, Votes
from .scene import Scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONCEPTS = (
    "red disc",
    "blue square",
    "yellow star",
    "green triangle",
    "striped purple diamond",
    "orange cross",
    "pink heart",
    "cyan ring",
)
# The sums of a class's votes are different whole numbers from any other class's: no ties.
RULE = Votes(
    {
        "circus": {"red disc": 8, "blue square": 3},
        "garden": {"yellow star": 6, "green triangle": 3},
        "harbour": {"striped purple diamond": 7, "orange cross": 3},
    },
    bias={"circus": 0, "garden": 1, "harbour": 2},
)
LAYOUTS = ("scattered", "hand")
LABELLINGS = ("instance", "class")
MAX_CONCEPTS = 16  # the tables have 2^m rows
CHUNK = 128  # pictures drawn at once


class Planted(NamedTuple):
    """One picture and what is known about it.

    Attributes
    ----------
    image : Tensor
        ``(3, size, size)`` in [0, 1].
    label : int
        The class.
    concepts : Tensor
        ``(m,)`` bool, the concept labels.
    masks : Tensor
        ``(m, size, size)`` bool, the place of each concept.
    caption : str
        What is in the picture, in words.
    """

    image: Tensor
    label: int
    concepts: Tensor
    masks: Tensor
    caption: str


class PlantedConcepts(Dataset[Planted]):
    """Pictures whose concepts, places, class rule and joint distribution are known exactly.

    Each concept is something to draw, there or not; each has a cell of a grid for itself. The
    class is a rule of the concepts. Everything follows from `seed`; pictures are drawn when they
    are first asked for. The set is a Dataset of `Planted` tuples, picture first.

    Parameters
    ----------
    n : int
        Number of pictures.
    size : int
        Their side in pixels.
    concepts : sequence of str
        m things to draw, such as "striped red disc" (see `drawing.Drawing`), "yellow border" or
        "flower background". With "striped disc | plain disc" the second is drawn where the first
        is not; the concept is called by the first.
    rule : Rule
        The class as a function of the concepts: `Votes` (linear) or `Formula` (Boolean).
    prevalence : float or sequence of float
        The probability of each concept.
    correlation : mapping, optional
        ``{(concept, concept, ...): r}``: between any two of the group the correlation is exactly
        r, from 0 to 1 (they always come together). Their prevalence must be the same, and no
        concept may be in two groups. With probability √r a concept takes the value of a bit
        that its group shares, else one of its own.
    label_noise : float
        The probability that a picture's class is replaced by another, drawn evenly.
    labelling : {"instance", "class"}
        Whether `concept_labels` say what is in each picture, or what is in more than half of its
        class's pictures.
    confounder : mapping, optional
        ``{class: probability}`` that a picture of the class (its label) bears an artefact, a
        printed tag in the last cell; 0 for other classes. For a counter-biased test set give it
        to another class: ``data.like(500, seed=1, confounder={"garden": 1.0})``.
    layout : {"scattered", "hand"}
        Concepts in cells drawn at random for each picture, or each always in its own, on a card.
    seed : int
        Fixes everything.

    Attributes
    ----------
    images : Tensor
        ``(n, 3, size, size)`` float32 in [0, 1].
    masks : Tensor
        ``(n, m, size, size)`` bool: the pixels of each concept, none where it is absent.
        Pixels outside do not depend on the concepts.
    labels : Tensor
        ``(n,)`` int64: the classes, with their noise.
    concepts : Tensor
        ``(n, m)`` bool: what is in the pictures.
    concept_labels : Tensor
        ``(n, m)`` bool: what a learner is told; `concepts` unless ``labelling="class"``.
    captions : list of str
        What is in each picture, in words.
    artefact : Tensor
        ``(n,)`` bool: which pictures bear it.
    artefact_masks : Tensor
        ``(n, size, size)`` bool.
    concept_names, class_names : list of str
        The m concepts and the classes.
    vectors : Tensor
        ``(2^m, m)`` bool: all concept vectors, the rows of the tables below, in counting order.

    Examples
    --------
    >>> data = PlantedConcepts(100, seed=0)
    >>> data[0].image.shape
    torch.Size([3, 64, 64])
    """

    def __init__(
        self,
        n: int,
        size: int = 64,
        concepts: Sequence[str] = CONCEPTS,
        rule: Rule = RULE,
        *,
        prevalence: float | Sequence[float] = 0.5,
        correlation: Mapping[tuple[str, ...], float] | None = None,
        label_noise: float = 0.0,
        labelling: str = "instance",
        confounder: Mapping[str, float] | None = None,
        layout: str = "scattered",
        seed: int = 0,
    ) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if not 1 <= len(concepts) <= MAX_CONCEPTS:
            raise ValueError(f"concepts must be 1 to {MAX_CONCEPTS}, got {len(concepts)}")
        if labelling not in LABELLINGS:
            raise ValueError(f"labelling must be one of {LABELLINGS}, got {labelling!r}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
        self.settings: dict[str, Any] = {
            "n": n,
            "size": size,
            "concepts": list(concepts),
            "rule": rule,
            "prevalence": prevalence,
            "correlation": dict(correlation or {}),
            "label_noise": _probability("label_noise", label_noise),
            "labelling": labelling,
            "confounder": dict(confounder or {}),
            "layout": layout,
            "seed": seed,
        }
        self.size, self.rule = size, rule
        self._drawings = [[Drawing.parse(part) for part in text.split("|")] for text in concepts]
        self.concept_names = [text.split("|")[0].strip() for text in concepts]
        self.class_names = list(rule.class_names)
        self.vectors = all_vectors(len(concepts))
        self._check_concepts()
        self.prevalence = self._prevalence(prevalence)
        self._probabilities = concept_table(self.prevalence, self._groups())
        self._classes = rule.scores(self.vectors, self.concept_names).argmax(1)  # (2^m,)
        generator = torch.Generator().manual_seed(seed)
        self._sample(generator)
        reserve = bool(self.settings["confounder"])
        self._scene = Scene(self._drawings, size, cards=layout == "hand", reserve=reserve)
        self._scenery = self._scene.arrange(n, generator)

    # -- what is true of the pictures -----------------------------------------------------------

    def joint(self) -> Tensor:
        """The probabilities of (concepts, class): ``(2^m, n_classes)`` float64, rows `vectors`.

        The concepts are what is in the pictures and the class is the label, with its noise.
        Reshaped to ``(2,) * m + (n_classes,)`` the table has one axis a concept.
        """
        n_classes, noise = len(self.class_names), self.settings["label_noise"]
        one_hot = torch.nn.functional.one_hot(self._classes, n_classes).double()
        given = (1 - noise) * one_hot + noise / (n_classes - 1) * (1 - one_hot)
        return self._probabilities[:, None] * given

    def truth_table(self) -> Tensor:
        """The class ``(2^m,)`` int64 that the rule gives to each row of `vectors`."""
        return self._classes.clone()

    def concepts_given_class(self) -> Tensor:
        """The probability of each concept in each class's pictures: ``(n_classes, m)`` float64."""
        joint = self.joint()
        return joint.T @ self.vectors.double() / joint.sum(0).clamp(min=1e-300)[:, None]

    def true_importance(self, of: str = "class") -> Tensor:
        """Total Sobol indices of the rule, by enumeration: ``(n_classes, m)`` float64.

        The share of a score's variance that is left when all concepts but one are known, were
        the concepts independent with their prevalence: 0 for concepts that the score ignores.

        Parameters
        ----------
        of : {"class", "score"}
            Of each class's indicator (1 where the rule gives the class), or of its score, which
            for `Votes` is its number of votes whatever the other classes get.
        """
        scores = self.rule.scores(self.vectors, self.concept_names)
        if of == "class":
            scores = torch.nn.functional.one_hot(self._classes, len(self.class_names))
        elif of != "score":
            raise ValueError(f"of must be 'class' or 'score', got {of!r}")
        return total_indices(scores, self.prevalence)

    # -- the pictures ---------------------------------------------------------------------------

    @property
    def images(self) -> Tensor:
        """The pictures ``(n, 3, size, size)``."""
        return self._drawn[0]

    @property
    def masks(self) -> Tensor:
        """The pixels of each concept ``(n, m, size, size)``."""
        return self._drawn[1]

    @property
    def artefact_masks(self) -> Tensor:
        """The pixels of the artefact ``(n, size, size)``."""
        return self.artefact[:, None, None] & self._scene.tag_mask()

    @cached_property
    def captions(self) -> list[str]:
        """What is in each picture, in words."""
        texts = [[d.text for d in drawings] for drawings in self._drawings]
        captions = []
        for present, artefact in zip(self.concepts.tolist(), self.artefact.tolist(), strict=True):
            seen = [t[0] if p else t[1] for t, p in zip(texts, present, strict=True) if p or t[1:]]
            captions.append("a picture of " + _listed([*seen, *["printed tag"] * artefact]))
        return captions

    @cached_property
    def _drawn(self) -> tuple[Tensor, Tensor]:
        return self.render(self.concepts)

    def render(self, concepts: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the same pictures with other concepts in them: exact counterfactuals.

        Places, sizes, backgrounds and artefacts stay.

        Parameters
        ----------
        concepts : Tensor
            ``(n, m)`` bool.

        Returns
        -------
        images : Tensor
            ``(n, 3, size, size)``.
        masks : Tensor
            ``(n, m, size, size)``.
        """
        if concepts.shape != self.concepts.shape:
            shapes = f"{tuple(self.concepts.shape)}, got {tuple(concepts.shape)}"
            raise ValueError(f"concepts must be {shapes}")
        parts = []
        for start in range(0, len(self), CHUNK):
            rows = slice(start, start + CHUNK)
            parts.append(
                self._scene.draw(self._scenery[rows], concepts[rows].bool(), self.artefact[rows])
            )
        images, masks = map(torch.cat, zip(*parts, strict=True))
        return images, masks

    def like(
        self, n: int, *, seed: int, confounder: Mapping[str, float] | None = None
    ) -> PlantedConcepts:
        """Draw another set of the same kind, such as a test set.

        Parameters
        ----------
        n : int
            Number of pictures.
        seed : int
            Another than this set's, if its pictures shall be others.
        confounder : mapping, optional
            Default: this set's; ``{}`` for none.
        """
        if confounder is None:
            confounder = self.settings["confounder"]
        changes = {"n": n, "seed": seed, "confounder": confounder}
        return PlantedConcepts(**{**self.settings, **changes})

    def plot(self, n: int = 24) -> Figure:
        """Draw the first pictures with their classes."""
        from matplotlib.figure import Figure

        n = min(n, len(self))
        columns = min(8, n)
        figure = Figure(figsize=(1.5 * columns, 1.7 * math.ceil(n / columns)), layout="constrained")
        for i, ax in enumerate(
            figure.subplots(math.ceil(n / columns), columns, squeeze=False).flat
        ):
            ax.set_axis_off()
            if i < n:
                ax.imshow(self.images[i].movedim(0, -1).numpy())
                ax.set_title(self.class_names[int(self.labels[i])], fontsize=8)
        return figure

    def __len__(self) -> int:
        return int(self.settings["n"])

    def __getitem__(self, i: int) -> Planted:
        if not -len(self) <= i < len(self):
            raise IndexError(f"picture {i} of {len(self)}")
        return Planted(
            self.images[i],
            int(self.labels[i]),
            self.concept_labels[i],
            self.masks[i],
            self.captions[i],
        )

    def __repr__(self) -> str:
        return (
            f"PlantedConcepts({len(self)}, size={self.size}, {len(self.concept_names)} concepts, "
            f"classes {self.class_names}, seed={self.settings['seed']})"
        )

    # -- arguments --------------------------------------------------------------------------------

    def _check_concepts(self) -> None:
        names = self.concept_names
        if len(set(names)) < len(names):
            raise ValueError(f"concepts must have different names, got {names}")
        for name, drawings in zip(names, self._drawings, strict=True):
            shapes = [drawing.shape for drawing in drawings]
            if len(shapes) > 2 or (len(shapes) == 2 and {*shapes} & {*WHOLE}):
                raise ValueError(f"the concept {name!r}: only a symbol has one other drawing")
        for whole in WHOLE:
            if sum(drawings[0].shape == whole for drawings in self._drawings) > 1:
                raise ValueError(f"concepts have more than one {whole}: {names}")

    def _prevalence(self, prevalence: float | Sequence[float]) -> list[float]:
        m = len(self.concept_names)
        values = [prevalence] * m if isinstance(prevalence, (int, float)) else list(prevalence)
        if len(values) != m:
            raise ValueError(f"prevalence must be one number or one a concept ({m}): {values}")
        return [_probability("prevalence", p) for p in values]

    def _groups(self) -> list[tuple[list[int], float]]:
        """The correlated groups as indices of concepts."""
        groups: list[tuple[list[int], float]] = []
        seen: set[str] = set()
        for names, r in self.settings["correlation"].items():
            unknown = [name for name in names if name not in self.concept_names]
            if isinstance(names, str) or len({*names}) < 2 or unknown:
                raise ValueError(
                    f"correlation must be of tuples of two or more of {self.concept_names}, got "
                    f"{names!r}"
                )
            if seen & {*names}:
                raise ValueError(f"correlation has {sorted(seen & {*names})} in two groups")
            seen |= {*names}
            members = [self.concept_names.index(name) for name in names]
            if len({self.prevalence[i] for i in members}) > 1:
                raise ValueError(f"correlated concepts need one prevalence: {names}")
            groups.append((members, _probability("correlation", r)))
        return groups

    # -- chance -----------------------------------------------------------------------------------

    def _sample(self, generator: torch.Generator) -> None:
        """Draw concepts, classes and artefacts."""
        n, n_classes = len(self), len(self.class_names)
        confounder = self.settings["confounder"]
        if unknown := [name for name in confounder if name not in self.class_names]:
            raise ValueError(f"confounder names {unknown}, which are not of {self.class_names}")
        marks = [_probability("confounder", confounder.get(c, 0.0)) for c in self.class_names]
        rows = torch.multinomial(self._probabilities, n, True, generator=generator)
        self.concepts = self.vectors[rows]
        noisy = torch.rand(n, generator=generator) < self.settings["label_noise"]
        shift = torch.randint(1, n_classes, (n,), generator=generator)
        self.labels = torch.where(
            noisy, (self._classes[rows] + shift) % n_classes, self._classes[rows]
        )
        self.artefact = torch.rand(n, generator=generator) < torch.tensor(marks)[self.labels]
        self.concept_labels = self.concepts
        if self.settings["labelling"] == "class":
            self.concept_labels = (self.concepts_given_class() > 0.5)[self.labels]


def _listed(things: list[str]) -> str:
    words = [f"{'an' if thing[0] in 'aeio' else 'a'} {thing}" for thing in things]
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words or ["nothing"])


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return float(value)
