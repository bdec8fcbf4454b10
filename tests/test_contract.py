"""Every method of a family has a row in the family's table, which its common test runs over.

The common tests are `test_extractors.py`, `test_attribute.py`, `test_maps.py` and
`test_bottlenecks.py`; ``pytest --collect-only -q`` of them counts the cases.
"""

import importlib
import inspect
import pkgutil

import pytest
import test_attribute
import test_bottlenecks
import test_extractors

import conceptlens
from conceptlens import attribution, maps
from conceptlens.bottleneck import BOTTLENECKS, Bottleneck
from conceptlens.extraction import EXTRACTORS
from conceptlens.importance import ESTIMATORS
from conceptlens.importance.attribute import METHODS
from conceptlens.maps import MAPS


def modules(package):
    """The package's modules, imported."""
    return [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]


def members(module, kind):
    """What a module itself defines under a public name."""
    return [
        thing for name, thing in vars(module).items()
        if kind(thing) and thing.__module__ == module.__name__ and not name.startswith("_")
    ]  # fmt: skip


def classes(package):
    return {c for module in modules(package) for c in members(module, inspect.isclass)}


def extractors():
    """All classes that are whole extractors, by what they can do."""
    verbs = ("fit", "fit_transform", "transform", "inverse_transform")
    return {
        c for c in classes(conceptlens.extraction)
        if all(hasattr(c, verb) for verb in verbs) and not getattr(c, "_is_protocol", False)
    }  # fmt: skip


def missing_extractors(table):
    return extractors() - {type(make(2, 0)) for make in table.values()}


def missing_bottlenecks(table):
    concrete = {c for c in classes(conceptlens.bottleneck) if issubclass(c, Bottleneck)}
    concrete = {c for c in concrete if not inspect.isabstract(c)}
    return concrete - {type(make(0)) for make in table.values()}


def missing_estimators(table):
    public = [getattr(conceptlens, name) for name in conceptlens.__all__]
    estimators = {
        f for f in public
        if inspect.isfunction(f) and inspect.signature(f).return_annotation == "Importance"
    }  # fmt: skip
    return (estimators - {getattr(f, "func", f) for f in table.values()}) | (
        set(METHODS) - set(table)
    )


def missing_maps(table):
    known = set(table.values()) | {
        cell.cell_contents for f in table.values() for cell in f.__closure__ or ()
    }
    attributions = {
        f for f in members(attribution, inspect.isfunction)
        if list(inspect.signature(f).parameters) == ["score", "x", "seed"]
    }  # fmt: skip
    own = {
        f for f in members(maps, inspect.isfunction)
        if list(inspect.signature(f).parameters) == ["cm", "x", "seed"]
    }  # fmt: skip
    return (attributions | own) - known


FAMILIES = (
    (EXTRACTORS, missing_extractors, "sae"),
    (BOTTLENECKS, missing_bottlenecks, "energy"),
    (ESTIMATORS, missing_estimators, "shapley"),
    (MAPS, missing_maps, "rise"),
)


@pytest.mark.parametrize(("table", "missing", "one"), FAMILIES)
def test_nothing_lacks_a_row_and_a_row_removed_is_noticed(table, missing, one):
    assert not missing(table)
    assert missing({name: row for name, row in table.items() if name != one})


def test_the_common_tests_run_over_the_whole_tables():
    def fixture(function):
        return list(function._fixture_function_marker.params)

    assert fixture(test_extractors.extractor) == list(EXTRACTORS)
    assert fixture(test_attribute.estimator) == list(ESTIMATORS)
    assert fixture(test_bottlenecks.model) == fixture(test_bottlenecks.make) == list(BOTTLENECKS)
