"""Bad input: one table of entry points, their arguments, and what an argument must not be.

Each case must end at once in a ValueError or TypeError of ours that says what was given and what
was expected. Nothing is accepted that would give NaN or another answer than was asked for.
"""

import re
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conceptlens as cl
from conceptlens import editing, metrics, naming
from conceptlens.bottleneck import BOTTLENECKS
from conceptlens.extraction import EXTRACTORS

NAN, INF = float("nan"), float("inf")
EXPECTED = (
    r"must|expected|needs|has|there (is|are|were)|near names|does not exist|not a folder|holds? "
    r"|contains NaN|expects|Expected|unknown|constant|never vary|least|first used|takes|fit first"
    r"|give |is empty: |do not fit"
)
# What is wrong -> the value, and a pattern of what the message says of it.
Bad = dict[str, tuple[Any, str]]
# Entry point and argument, the call with good values for all others, and what is bad.
Case = tuple[str, Callable[[Any], Any], Bad]


# -- what is bad about a value of a kind -----------------------------------------------------------


def numbers(good: Tensor, finite: bool = True, **more: tuple[Any, str]) -> Bad:
    """What is no tensor like `good`; `finite` if NaN and infinities must be refused too."""
    bad: Bad = {}
    for value in (NAN, INF, -INF) if finite else ():
        one = good.clone()
        one[(-1,) * one.ndim] = value
        bad |= {f"one {value}": (one, "NaN"), f"all {value}": (torch.full_like(good, value), "NaN")}
    for label, x in {
        "no rows": good[:0], "an axis less": good[0], "an axis more": good[None],
        "an empty axis": good[..., :0], "a scalar": good.flatten()[0],
    }.items():  # fmt: skip
        bad[label] = (x, re.escape(str(tuple(x.shape))))
    bad["complex"] = (good.to(torch.complex64), "(?i)complex")
    bad |= {"None": (None, "None"), "dict": ({"a": good}, "dict"), "text": ("ab", "str|'ab'")}
    return bad | {"a function": (len, "builtin|function")} | more


def floats(good: Tensor, finite: bool = True, **more: tuple[Any, str]) -> Bad:
    """As `numbers`, and whole numbers are refused too."""
    whole = {
        str(dtype): (good.to(dtype), str(dtype).removeprefix("torch."))
        for dtype in (torch.int64, torch.uint8, torch.bool)
    }
    return numbers(good, finite, **more) | whole


def these(*values: Any) -> Bad:
    return {repr(value)[:40]: (value, re.escape(repr(value))) for value in values}


COUNT = these(0, -1, 1.5, NAN, INF, "three", None, [3], True)
CHOICE = these("magic", "", 3, None)
SEED = these("a", 1.5, None, -1)
TARGET = these(99, -9, "dragon", 1.5, None, True)
POSITIVE = these(0, -1, NAN, INF, "a")
SHARE = these(-1, 2, NAN, "a")
WEIGHT = these(-1, NAN, INF, "a")


# -- good values -----------------------------------------------------------------------------------


def rows(n: int = 40, c: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 4, generator=generator) @ torch.rand(4, c, generator=generator)


def images(n: int = 12) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)
    )


@cache
def backbone() -> cl.Backbone:
    return cl.Backbone(network(), "1", class_names=["cat", "dog", "owl"])


@cache
def fitted(name: str) -> Any:
    return EXTRACTORS[name](4, 0).fit(rows())


@cache
def model() -> cl.DictionaryModel:
    a = backbone().activations(images()).flatten(0, 1)
    return cl.DictionaryModel(backbone(), cl.NMF(4, random_state=0).fit(a))


def codes() -> Tensor:
    return model().encode(images(5))


def labels(n: int = 40) -> Tensor:
    return torch.arange(n) % 3


def concepts() -> Tensor:
    return (torch.rand(40, 4, generator=torch.Generator().manual_seed(2)) < 0.5).float()


def made(name: str, **options: Any) -> Any:
    bottleneck = BOTTLENECKS[name](0)
    known = bottleneck.get_params()
    if "interpretability" in known:
        bottleneck.set_params(interpretability=-1.0)
    return bottleneck.set_params(**({"max_epochs": 2} if "max_epochs" in known else {}) | options)


@cache
def trained(name: str) -> Any:
    return made(name).fit(rows(), labels(), concepts=concepts())


# -- what is called --------------------------------------------------------------------------------


def options(entry: str, call: Callable[..., Any], **bad: Bad) -> Iterator[Case]:
    """`call` takes each of these by keyword, and has defaults for all."""
    for name, values in bad.items():
        yield f"{entry} {name}", lambda value, name=name: call(**{name: value}), values


def extractors(tmp_path) -> Iterator[Case]:
    for name, make in EXTRACTORS.items():
        u = fitted(name).transform(rows())
        other = {"channels": (rows(c=5), "5")}
        yield f"{name}.fit a", make(4, 0).fit, floats(rows())
        yield f"{name}.transform a", fitted(name).transform, floats(rows(), **other)
        yield f"{name}.inverse_transform u", fitted(name).inverse_transform, floats(
            u, finite=False, concepts=(torch.ones(3, 9), "9")
        )  # fmt: skip
    every = {
        "n_components": COUNT, "solver": CHOICE, "init": CHOICE, "variant": CHOICE, "tol": WEIGHT,
        "max_iter": COUNT, "alpha_W": WEIGHT, "alpha_H": WEIGHT, "l1_ratio": SHARE,
        "random_state": SEED, "sparsity": these(0, -1, 1.5, 9, "a"), "n_epochs": COUNT,
        "batch_size": COUNT, "learning_rate": POSITIVE,
    }  # fmt: skip
    for cls in (cl.NMF, cl.SemiNMF, cl.ConvexNMF, cl.SparseAutoencoder):

        def fit(cls=cls, **o):
            return cls(**({"n_components": 4} | o)).fit(rows())

        known = cls().get_params()
        yield from options(cls.__name__, fit, **{n: b for n, b in every.items() if n in known})
    for cls in (cl.NMF, cl.ConvexNMF):
        yield f"{cls.__name__} n_components", lambda k, c=cls: c(k).fit(rows()), these(99)
        yield f"{cls.__name__}.fit a", cls(4).fit, {"two rows": (rows(2), "2")}
    yield "NMF.fit a", cl.NMF(4).fit, {"negative": (-rows(), r"-\d")}
    yield "NMF.save", cl.NMF(4).save, {"not fitted": (tmp_path, "NMF")}


def importances(_) -> Iterator[Case]:
    for f in (cl.sobol, cl.attribute, editing.counterfactual):
        name = f.__name__
        yield f"{name} codes", lambda c, f=f: f(model(), c, 0), floats(codes())
        yield f"{name} target", lambda t, f=f: f(model(), codes(), t), (
            TARGET if f is not editing.counterfactual else these(99, -9, "dragon", 1.5)
        )  # fmt: skip
        yield f"{name} cm", lambda m, f=f: f(m, codes(), 0), {
            "None": (None, "None"), "text": ("cm", "str"), "backbone": (backbone(), "Backbone")
        }  # fmt: skip
        yield from options(name, partial(f, model(), codes(), 0), batch_size=COUNT)
    yield from options(
        "sobol", partial(cl.sobol, model(), codes(), 0), n_designs=COUNT | these(1), order=CHOICE,
        estimator=these("magic", "", 3), design=CHOICE, tolerance=SHARE, max_designs=COUNT,
        seed=SEED,
    )  # fmt: skip
    yield from options(
        "attribute", partial(cl.attribute, model(), codes(), 0), method=CHOICE, seed=SEED
    )
    ranks = torch.arange(4.0)
    for f in (metrics.c_deletion, metrics.c_insertion, metrics.c_mu_fidelity,
              metrics.simplicity_curve):  # fmt: skip
        name = f.__name__
        yield f"{name} codes", lambda c, f=f: f(model(), c, 0, ranks), floats(codes())
        yield f"{name} target", lambda t, f=f: f(model(), codes(), t, ranks), TARGET
        yield f"{name} importance", lambda i, f=f: f(model(), codes(), 0, i), {
            "NaN": (ranks * NAN, "NaN"), "three": (ranks[:3], "3"), "text": ("a", "'a'"),
            "None": (None, "None"),
        }  # fmt: skip
        yield from options(name, partial(f, model(), codes(), 0, ranks), batch_size=COUNT)


def models(_) -> Iterator[Case]:
    bb, x = backbone(), images(3)
    a = bb.activations(x)
    grey = {"one channel": (torch.ones(2, 1, 16, 16), "1")}
    yield "Backbone.activations x", bb.activations, floats(x, **grey)
    yield "Backbone() x", bb, floats(x, **grey)
    yield "Backbone.head a", bb.head, floats(
        a, finite=False, channels=(torch.ones(2, 16, 5), "5"), positions=(torch.ones(2, 5, 12), "5")
    )  # fmt: skip
    yield "Backbone.class_index", bb.class_index, TARGET
    yield "Backbone model", lambda m: cl.Backbone(m, "1"), {
        "None": (None, "None"), "text": ("resnet18", "str")
    }  # fmt: skip
    yield "Backbone layer", lambda v: cl.Backbone(network(), v), these("99", "", 3)
    yield "Backbone transform", lambda v: cl.Backbone(network(), "1", v), these(3, "a")
    yield from options(
        "Backbone", partial(cl.Backbone, network(), "1"),
        class_names=these("abc", 3, [1, 2, 3]), autocast=these("half", 3),
    )  # fmt: skip
    yield "activations_at layers", lambda v: bb.activations_at(x, v), {
        "unknown": (["99"], "'99'"), "none": ([], "none"), "text": ("99", "'99'")
    }  # fmt: skip
    yield "from_torchvision", lambda v: cl.Backbone.from_torchvision(v, weights=None), these(
        "resnet", "", 3, None
    )  # fmt: skip
    dictionary = cl.DictionaryModel
    yield "DictionaryModel backbone", lambda v: dictionary(v, fitted("nmf")), {
        "None": (None, "None"), "text": ("a", "str"), "network": (network(), "Sequential")
    }  # fmt: skip
    yield "DictionaryModel extractor", lambda v: dictionary(bb, v), {
        "None": (None, "None"), "text": ("nmf", "str"), "not fitted": (cl.NMF(3), "NMF")
    }  # fmt: skip
    yield "DictionaryModel concept_names", lambda v: dictionary(bb, fitted("nmf"), v), these(
        ["a", "b"], "abcd", [1, 2, 3, 4], 3
    )  # fmt: skip
    yield "DictionaryModel.encode x", model().encode, floats(x)
    yield "DictionaryModel.classify codes", model().classify, floats(
        codes(), finite=False, k=(torch.ones(2, 16, 9), "9")
    )  # fmt: skip
    for f in (cl.concept_maps, lambda cm, x, *m, **o: cl.contrastive_maps(cm, x, 0, 1, *m, **o)):
        name = "concept_maps" if f is cl.concept_maps else "contrastive_maps"
        yield f"{name} x", partial(f, model()), floats(x)
        yield f"{name} cm", lambda m, f=f: f(m, x), {"None": (None, "None"), "text": ("a", "str")}
        yield from options(name, partial(f, model(), x), method=CHOICE, batch_size=COUNT, seed=SEED)
    yield "contrastive_maps", lambda t: cl.contrastive_maps(model(), x, t, 1), TARGET
    yield "coam vectors", lambda v: cl.coam(bb, v, x), floats(rows(4), c=(rows(4, 7), "7"))
    yield "waterfall x", lambda x: cl.waterfall(model(), x), floats(x[0])
    yield "waterfall target", lambda t: cl.waterfall(model(), x[0], t), these(99, -9, "dragon", 1.5)
    yield from options("waterfall", partial(cl.waterfall, model(), x[0]), batch_size=COUNT)

    def explain(images=images(), target=0, **o):  # noqa: B008
        craft = cl.CRAFT(**({"backbone": bb, "n_concepts": 3, "patch_size": 8, "n_designs": 8} | o))
        return craft.explain(images, target, predicted_only=False)

    pictures = numbers(images()) | {"no rows": (images(0), "empty")}
    pictures["an empty axis"] = (images()[..., :0], r"3, 16, 0\)")
    yield "CRAFT.explain images", lambda v: explain(images=v), pictures
    yield "CRAFT.explain target", lambda v: explain(target=v), these(99, -9, "dragon", 1.5)
    yield from options(
        "CRAFT", explain, n_concepts=COUNT | these(99), patch_size=COUNT | these(99), crops=CHOICE,
        n_designs=COUNT | these(1), batch_size=COUNT, seed=SEED,
    )  # fmt: skip
    yield "CRAFT backbone", lambda v: cl.CRAFT(v), {"None": (None, "None"), "text": ("a", "str")}
    yield "CRAFT extractor", lambda v: cl.CRAFT(bb, extractor=v), {"number": (3, "int")}
    runs = {"n_runs": 4}
    cavs = cl.fit_cavs({"a": rows()}, rows(), **runs)
    yield "fit_cavs rows", lambda v: cl.fit_cavs({"a": v}, rows(), **runs), floats(rows())
    yield "fit_cavs negatives", lambda v: cl.fit_cavs({"a": rows()}, v, **runs), floats(rows())
    yield "fit_cavs concept_rows", lambda v: cl.fit_cavs(v, rows()), {
        "empty": ({}, "empty"), "list": ([1], r"\[1\]"), "None": (None, "None")
    }  # fmt: skip
    fit = partial(cl.fit_cavs, {"a": rows()}, rows())
    yield from options("fit_cavs", fit, method=CHOICE, n_runs=COUNT | these(99))
    yield "tcav activations", lambda a: cl.tcav(bb, a, 0, cavs), floats(a)
    yield "tcav target", lambda t: cl.tcav(bb, a, t, cavs), TARGET
    yield from options(
        "tcav", partial(cl.tcav, bb, a, 0, cavs), correction=CHOICE, batch_size=COUNT
    )


def stores(tmp_path) -> Iterator[Case]:
    bb, folders = backbone(), iter(range(10**6))

    def build(bb=bb, images=images(), **o):  # noqa: B008
        folder = tmp_path / str(next(folders))
        return cl.ActivationStore.build(bb, images, folder, **({"batch_size": 4} | o))

    store = build()
    pictures = numbers(images()) | {"no rows": (images(0), "empty")}
    pictures["an empty axis"] = (images()[..., :0], r"3, 16, 0\)")
    yield "store.build images", lambda v: build(images=v), pictures
    yield "store.build bb", lambda v: build(bb=v), {"None": (None, "None"), "text": ("a", "str")}
    yield from options(
        "store.build", build, batch_size=COUNT, shard_bytes=COUNT, num_workers=these(-1, 1.5, "a"),
        dtype=these(torch.int64, "float32", None, torch.complex64),
    )  # fmt: skip
    yield "build_layers", lambda v: cl.ActivationStore.build_layers(
        bb, images(), tmp_path / "layers", layers=v
    ), {"unknown": (["99"], "'99'"), "none": ([], "empty"), "text": ("99", "'99'")}  # fmt: skip
    yield "store[]", store.__getitem__, these(1.5, "a", None, [3], NAN)
    vectors = lambda **o: list(store.vectors(**({"batch_size": 4} | o)))  # noqa: E731
    yield from options(
        "vectors", vectors, batch_size=COUNT, seed=SEED, pictures=these("ab", 3, [1])
    )
    nothing = {"an empty folder": (tmp_path / "nothing", "nothing")}
    yield "store.open", cl.ActivationStore.open, nothing
    yield "Explanation.load", cl.Explanation.load, nothing
    x = torch.ones(3, 8, 8)
    yield "Pictures", lambda v: cl.Pictures(v)[0], {
        "bool": ([x.bool()], "bool"), "int64": ([x.long()], "int64"),
        "empty": ([], "empty"), "number": (3, "int"), "set": ({1}, "set"),
    }  # fmt: skip


def paths(tmp_path) -> Iterator[Case]:
    bb, explanation = backbone(), cl.CRAFT(backbone(), 2, 8, n_designs=2).explain(images())
    craft = cl.CRAFT(bb, 2, 8, n_designs=2)
    both = cl.compare({"a": explanation, "b": explanation})
    calls = {
        "Explanation.save": explanation.save, "Explanation.to_html": explanation.to_html,
        "Explanation.load": cl.Explanation.load, "Comparison.to_html": both.to_html,
        "explain_classes": lambda v: cl.explain_classes(craft, images(), v),
        "ClassIndex": cl.ClassIndex, "NMF.save": fitted("nmf").save, "NMF.load": cl.NMF.load,
        "extraction.load": cl.extraction.load,
        "store.build": lambda v: cl.ActivationStore.build(bb, images(), v),
        "store.build_layers": lambda v: cl.ActivationStore.build_layers(
            bb, images(), v, layers=["1"]
        ),
        "store.open": cl.ActivationStore.open,
        "PosthocCBM.save": trained("posthoc").save,
        "PosthocCBM.load": cl.bottleneck.PosthocCBM.load,
    }  # fmt: skip
    bad = these(None, 3, b"a", ["a"]) | {"NUL": (str(tmp_path / "a\0b"), "NUL")}
    bad |= {"no UTF-8": (tmp_path / "\udcff", r"\\udcff")}
    for name, call in calls.items():
        yield f"{name} path", call, bad


def bottlenecks(_) -> Iterator[Case]:
    every = {
        "max_epochs": COUNT, "batch_size": COUNT, "lr": POSITIVE, "random_state": SEED,
        "concept_names": these(["a"], "abcd", 3), "class_weight": these("magic", 3),
        "penalty": POSITIVE, "training": CHOICE, "sparsity": CHOICE, "classifier": CHOICE,
        "validation_fraction": these(-1, 1, NAN, "a"), "patience": these(0, -1, 1.5, "a"),
        "n_lambdas": COUNT, "hidden": COUNT, "dropout": SHARE, "strength": WEIGHT,
        "concept_weight": WEIGHT, "weight_decay": WEIGHT, "global_weight": WEIGHT,
        "interpretability": these(NAN, 2, "a"), "nonzeros": POSITIVE, "scale": POSITIVE,
        "tau_start": POSITIVE, "tau_end": POSITIVE, "similarity_weight": WEIGHT,
        "lora_rank": these(0, -1, 1.5), "finetune_epochs": these(-1, 1.5, "a"),
    }  # fmt: skip
    x, y, c = rows(), labels(), concepts()
    features = floats(x)
    del features["an axis more"]  # it is activations of one picture
    for name in BOTTLENECKS:
        fit = lambda x=x, y=y, c=c, n=name, **o: made(n, **o).fit(x, y, concepts=c)  # noqa: E731
        yield f"{name}.fit x", lambda v, fit=fit: fit(x=v), features | {"few": (rows(7), "7")}
        yield f"{name}.fit y", lambda v, fit=fit: fit(y=v), {
            "few": (y[:7], "7"), "one class": (y * 0, "0"), "NaN": (y * NAN, "NaN|nan"),
            "fractions": (y + 0.5, "continuous"), "None": (None, "None"),
            "two axes": (y[:, None].repeat(1, 2), "2"),
        }  # fmt: skip
        yield f"{name}.fit concepts", lambda v, fit=fit: fit(c=v), {
            "few": (c[:7], "7"), "infinite": (c / 0, "infinite"), "one axis": (c[:, 0], r"\(40,\)"),
            "three axes": (c[None], "1, 40"), "text": ("a", "'a'"), "none": (c[:, :0], "0"),
            "unlabelled": (c * NAN, "no label"), "constant": (c * 0, "constant, 0"),
        }  # fmt: skip
        known = BOTTLENECKS[name](0).get_params()
        yield from options(name, fit, **{n: bad for n, bad in every.items() if n in known})
        yield f"{name} backbone", lambda v, fit=fit: fit(backbone=v), {
            "number": (3, "int"), "text": ("a", "str")
        }  # fmt: skip
        for method in ("predict", "predict_proba", "predict_concepts", "decision_function"):
            bad = features | {"channels": (rows(c=7), "7")}
            yield f"{name}.{method} x", getattr(trained(name), method), bad
        yield f"{name}.intervene", lambda v, n=name: trained(n).intervene(rows(), v), {
            "unknown": ({"dragon": 1}, "dragon"), "beyond": ({99: 1}, "99"), "None": (None, "None"),
            "infinite": ({0: INF}, "inf"), "text": ({0: "a"}, "'a'"), "list": ([1], r"\[1\]"),
            "few": ({0: torch.ones(3)}, "3"),
        }  # fmt: skip


def others(_) -> Iterator[Case]:
    c, y = rows(), concepts()
    for f in (metrics.aucs, metrics.recovery):
        bad = numbers(c)
        del bad["an axis more"]  # they are codes (n, P, k)
        yield f"{f.__name__} codes", lambda v, f=f: f(v, y), bad
        yield f"{f.__name__} labels", lambda v, f=f: f(c, v), {
            "few": (y[:7], "7"), "two": (y * 2, "2"), "NaN": (y * NAN, "NaN"), "text": ("a", "'a'")
        }  # fmt: skip
    for f in (metrics.l0, metrics.gini, metrics.hoyer):
        yield f"{f.__name__} codes", f, numbers(c)
    for f in (metrics.r2, metrics.relative_error, metrics.frechet_distance, metrics.wasserstein,
              metrics.ood_score, metrics.match_dictionaries):  # fmt: skip
        yield f"{f.__name__}", lambda v, f=f: f(v, c), numbers(c, other=(rows(c=7), "7"))
    yield "erase activations", lambda v: editing.erase(v, labels()), numbers(c)
    yield "erase labels", lambda v: editing.erase(c, v), {
        "few": (labels(7), "7"), "one class": (labels() * 0, r"\[0\]"), "text": ("a", "'a'"),
        "NaN": (labels() * NAN, "NaN"),
    }  # fmt: skip
    yield from options("erase", partial(editing.erase, c, labels()), method=CHOICE)
    edits = {
        "ablate": editing.ablate, "scale": lambda m, c, k: editing.scale(m, c, k, 2.0),
        "set": lambda m, c, k: editing.set(m, c, k, 1.0),
    }  # fmt: skip
    for name, f in edits.items():
        yield f"{name} codes", lambda v, f=f: f(model(), v, [0]), floats(codes())
        yield f"{name} concepts", lambda v, f=f: f(model(), codes(), v), {
            "unknown": (["dragon"], "'dragon'"), "beyond": ([99], "99"), "none": ([], "at least"),
            "None": (None, "None"), "a fraction": ([1.5], "1.5"),
        }  # fmt: skip
    yield "by_labels activations", lambda v: naming.by_labels(v, y, list("abcd")), numbers(c)
    yield "by_labels names", lambda v: naming.by_labels(c, y, v), {
        "one": (["a"], "m = 1"), "number": (3, "3"), "twice": (list("aabc"), "'a'")
    }  # fmt: skip


# -- the test --------------------------------------------------------------------------------------

SECTIONS = (extractors, importances, models, stores, paths, bottlenecks, others)


def fault(call: Callable[[Any], Any], value: Any, received: str) -> str | None:
    """What is wrong with how a bad value was met."""
    start = time.process_time()
    try:
        call(value)
    except (ValueError, TypeError) as error:
        end = error.__traceback__
        while end.tb_next:
            end = end.tb_next
        message, file = str(error), end.tb_frame.f_code.co_filename
        if "/conceptlens/" not in file and "/sklearn/utils/" not in file:
            return f"an error of {file}: {message}"
        if not re.search(received, message):
            return f"the message does not say {received!r}: {message}"
        if not re.search(EXPECTED, message):
            return f"the message does not say what was expected: {message}"
        seconds = time.process_time() - start
        return f"refused after {seconds:.0f} s" if seconds > 10 else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


@pytest.mark.parametrize("section", SECTIONS)
def test_bad_input_is_refused_and_named(section, tmp_path, record_property):
    faults, n = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, call, bad in section(tmp_path):
            for label, (value, received) in bad.items():
                n += 1
                if (found := fault(call, value, received)) is not None:
                    faults.append(f"{name}, {label}: {found:.200}")
    record_property("bad inputs", n)
    assert not faults, f"{len(faults)} of {n}:\n" + "\n".join(faults)
