"""`Names`, and names by the nearest text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from ..metrics.checks import check_shape
from .vocabulary import check_words

TOP = 5


@dataclass(frozen=True, eq=False)
class Names:
    """The names of k concepts, and how far to trust them.

    Attributes
    ----------
    names : list of str
        The best word for each concept; several concepts may share one.
    confidence : Tensor
        ``(k,)``, on the CPU; what it is depends on the method, higher is surer.
    candidates : list of list of (str, float)
        For each concept its best words with their scores, best first.
    method : str
        How they were found.
    """

    names: list[str]
    confidence: Tensor
    candidates: list[list[tuple[str, float]]]
    method: str

    @property
    def labels(self) -> list[str]:
        """The names, told apart by the concepts' numbers where several concepts share one."""
        count = Counter(self.names)
        return [f"{name} ({i})" if count[name] > 1 else name for i, name in enumerate(self.names)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> str:
        return self.names[i]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def _rows(self) -> list[tuple[str, str, str]]:
        """For each concept its label, its confidence and its other candidates."""
        return [
            (label, f"{sure:.3f}", ", ".join(f"{word} {score:.3g}" for word, score in words[1:]))
            for label, sure, words in zip(
                self.labels, self.confidence.tolist(), self.candidates, strict=True
            )
        ]

    def __repr__(self) -> str:
        rows = (f"  {label}: {sure}  (then {others})" for label, sure, others in self._rows())
        return "\n".join([f"Names of {len(self)} concepts by {self.method}", *rows])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
            for row in self._rows()
        )
        head = "<tr><th>name</th><th>confidence</th><th>runners-up</th></tr>"
        return f"<table><caption>names by {escape(self.method)}</caption>{head}{rows}</table>"


def best(
    scores: Tensor,
    words: Sequence[str],
    method: str,
    *,
    top: int = TOP,
    confidence: Callable[[Tensor], Tensor] | None = None,
) -> Names:
    """Take each concept's highest of `scores` ``(k, m)``.

    `confidence` maps the chosen words' indices ``(k,)`` to ``(k,)``; by default it is the score.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    values, indices = scores.topk(min(top, len(words)), dim=1)
    candidates = [
        [(words[i], float(value)) for value, i in zip(row, chosen, strict=True)]
        for row, chosen in zip(values.tolist(), indices.tolist(), strict=True)
    ]
    sure = values[:, 0] if confidence is None else confidence(indices[:, 0])
    return Names([c[0][0] for c in candidates], sure.detach().cpu(), candidates, method)


def by_text(
    directions: Any,
    vocabulary: Sequence[str],
    text_encoder: Callable[[list[str]], Tensor],
    *,
    top: int = TOP,
) -> Names:
    """Name each concept by the word whose embedding has the largest cosine with it.

    Parameters
    ----------
    directions : Tensor or array
        ``(k, e)``, the concepts in the text encoder's space: a dictionary's components where it
        was learnt from a CLIP's image embeddings.
    vocabulary : sequence of str
        m different words.
    text_encoder : callable
        Maps a list of m texts to unit rows ``(m, e)``.
    top : int
        How many candidates to keep.

    Returns
    -------
    Names
        Scores and confidence are cosines.

    References
    ----------
    Rao et al., "Discover-then-name: task-agnostic concept bottlenecks via automated concept
    discovery", ECCV 2024.
    """
    words = check_words(vocabulary)
    rows = check_shape(directions, "directions", "k e").float()
    texts = check_shape(text_encoder(words), "the text encoder's rows", "m e", m=len(words))
    if texts.shape[1] != rows.shape[1]:
        raise ValueError(
            f"directions have {rows.shape[1]} numbers, texts {texts.shape[1]}: they must lie in "
            "the space that pictures and texts share (AlignedText learns a map into it)"
        )
    texts = nn.functional.normalize(texts.to(rows), dim=1)
    with torch.no_grad():
        cosines = nn.functional.normalize(rows, dim=1) @ texts.T
    return best(cosines, words, "cosine with the text", top=top)
