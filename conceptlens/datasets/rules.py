"""Rules that decide a picture's class from its concepts."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Rule(Protocol):
    """Scores of the classes as functions of the concepts; the highest score wins.

    Attributes
    ----------
    class_names : list of str
        One a class.
    """

    class_names: list[str]

    def scores(self, concepts: Tensor, concept_names: Sequence[str]) -> Tensor:
        """Score concept vectors ``(N, m)`` of zeros and ones: ``(N, n_classes)`` in float64."""


class Votes:
    """A linear rule: each concept that is present votes for classes.

    Parameters
    ----------
    weights : mapping
        ``{class: {concept: weight}}``; concepts that are not named weigh nothing.
    bias : mapping, optional
        ``{class: votes that it has anyway}``; the first of classes with as many votes wins.

    Examples
    --------
    "rich" where 2·gold + silver is above 1.5, else "poor":

    >>> rule = Votes({"rich": {"gold": 2, "silver": 1}, "poor": {}}, bias={"poor": 1.5})
    """

    def __init__(
        self, weights: Mapping[str, Mapping[str, float]], bias: Mapping[str, float] | None = None
    ) -> None:
        self.weights = {name: dict(votes) for name, votes in weights.items()}
        self.bias = dict(bias or {})
        self.class_names = list(weights)
        if len(self.class_names) < 2:
            raise ValueError(f"a rule needs two classes or more, got {self.class_names}")
        _check_known("bias", self.bias, self.class_names)

    def scores(self, concepts: Tensor, concept_names: Sequence[str]) -> Tensor:
        """Count the votes ``(N, n_classes)`` of concept vectors ``(N, m)``."""
        for name, votes in self.weights.items():
            _check_known(f"the rule of class {name!r}", votes, concept_names)
        rows = [[votes.get(c, 0.0) for c in concept_names] for votes in self.weights.values()]
        bias = [self.bias.get(name, 0.0) for name in self.class_names]
        return concepts.double() @ torch.tensor(rows).double().T + torch.tensor(bias).double()

    def __repr__(self) -> str:
        return f"Votes({self.weights}, bias={self.bias})"


class Formula:
    """A Boolean rule: the first class whose formula is true.

    Parameters
    ----------
    formulas : mapping
        ``{class: formula}``; a formula joins names of concepts by ``and``, ``or``, ``not`` and
        brackets.
    otherwise : str
        The class where no formula is true.

    Examples
    --------
    >>> rule = Formula({"snack": "red disc and not (star or ring)"}, otherwise="no snack")
    """

    def __init__(self, formulas: Mapping[str, str], otherwise: str = "other") -> None:
        self.formulas = dict(formulas)
        self.otherwise = otherwise
        self.class_names = [*formulas, otherwise]
        if not formulas or otherwise in formulas:
            raise ValueError(f"a rule needs different classes, got {self.class_names}")

    def scores(self, concepts: Tensor, concept_names: Sequence[str]) -> Tensor:
        """Give 1 to the class and 0 to the others, for concept vectors ``(N, m)``."""
        present = concepts.bool()
        columns = [_evaluate(f, present, concept_names) for f in self.formulas.values()]
        true = torch.stack([*columns, torch.ones(len(present), dtype=torch.bool)], 1)
        first = true.double().argmax(1)
        return torch.nn.functional.one_hot(first, len(self.class_names)).double()

    def __repr__(self) -> str:
        return f"Formula({self.formulas}, otherwise={self.otherwise!r})"


def _evaluate(formula: str, present: Tensor, concept_names: Sequence[str]) -> Tensor:
    """The truth ``(N,)`` of a formula for concept vectors ``(N, m)``."""
    text = formula
    # Names hold spaces; longest first, as one may be part of another.
    for i in sorted(range(len(concept_names)), key=lambda i: -len(concept_names[i])):
        text = re.sub(rf"\b{re.escape(concept_names[i])}\b", f"c{i}_", text)

    def truth(node: ast.AST) -> Tensor:
        if isinstance(node, ast.BoolOp):
            parts = torch.stack([truth(value) for value in node.values])
            return parts.all(0) if isinstance(node.op, ast.And) else parts.any(0)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~truth(node.operand)
        if isinstance(node, ast.Name) and re.fullmatch(r"c\d+_", node.id):
            return present[:, int(node.id[1:-1])]
        raise ValueError(ast.unparse(node))

    try:
        return truth(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"the formula {formula!r} is not understood ({error}): join concepts of "
            f"{list(concept_names)} by and, or, not and brackets"
        ) from None


def _check_known(what: str, names: Mapping[str, float], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what} names {name!r}, which is not one of {list(known)}")
