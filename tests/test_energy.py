import itertools
import math

import pytest
import torch

from conceptlens.bottleneck import energy_inference
from conceptlens.bottleneck.energies import EnergyNetwork, draw_flips
from conceptlens.bottleneck.energy import EnergyCBM
from conceptlens.bottleneck.energy_inference import Energies, average, gradient_minimum, infer
from conceptlens.bottleneck.energy_joint import JointDistribution
from conceptlens.datasets import PlantedConcepts
from conceptlens.datasets.zoo import small_cnn

C, K, CLASSES = 5, 4, 3


def rough_network(seed, k=K, n_classes=CLASSES, scale=5.0, device="cpu"):
    """A random network in float64 whose three energies are of one size and disagree."""
    torch.manual_seed(seed)
    network = EnergyNetwork(
        C, k, n_classes, hidden=16, dropout=0.0, concept_weight=0.7, global_weight=3.0
    )
    network.double().eval().requires_grad_(False).to(device)
    network.global_projection.weight *= 10
    network.concept_head.weight *= scale
    network.class_head.weight *= scale
    network.standardise(3 + 2 * torch.randn(50, C, dtype=torch.float64, device=device))
    return network


def pictures(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(n, C, generator=generator, dtype=torch.float64)


def layer(linear, x):
    return linear.weight @ x + linear.bias


def energy_by_formula(net, x, c, y):
    """The paper's joint energy of one picture, one list of concepts and one class, term by term."""
    x = (x - net.mean) / net.scale
    u = net.class_vectors[y] / net.class_vectors[y].norm()
    v = [net.concept_vectors[k, s] / net.concept_vectors[k, s].norm() for k, s in enumerate(c)]

    def meet(p, e, head):
        return layer(head, torch.relu(p + p * e)).item()

    of_class = meet(layer(net.class_projection, x), u, net.class_head)
    p = layer(net.concept_projection, x)
    of_concepts = sum(meet(p, e, net.concept_head) for e in v)
    of_both = meet(layer(net.global_projection, torch.cat(v)), u, net.global_head)
    return of_class + net.concept_weight * of_concepts + net.global_weight * of_both


def table_by_formula(net, x):
    """{(c, y): E} of one picture, all states in a loop."""
    k, n_classes = len(net.concept_vectors), len(net.class_vectors)
    states = itertools.product(itertools.product((0, 1), repeat=k), range(n_classes))
    return {(c, y): energy_by_formula(net, x, c, y) for c, y in states}


def probabilities(tables):
    """{(c, y): p}, the mean over pictures of each one's Boltzmann distribution."""
    total = dict.fromkeys(tables[0], 0.0)
    for table in tables:
        z = sum(math.exp(-e) for e in table.values())
        for state, e in table.items():
            total[state] += math.exp(-e) / z / len(tables)
    return total


def conditional(p, event, given):
    """P(event | given) by summing the states for which two functions of (c, y) hold."""
    both = sum(v for (c, y), v in p.items() if event(c, y) and given(c, y))
    return both / sum(v for (c, y), v in p.items() if given(c, y))


@pytest.fixture(scope="module")
def enumerated():
    network, x = rough_network(0), pictures(6)
    return network, x, [table_by_formula(network, row) for row in x]


@pytest.fixture(scope="module")
def joint(enumerated):
    network, x, _ = enumerated
    names = [f"c{k}" for k in range(K)]
    return JointDistribution(*average(network.joint(x), 0), names, ["a", "b", "c"])


# -- energies ---------------------------------------------------------------------------------


def test_energies_are_the_papers(enumerated):
    network, x, tables = enumerated
    energies = network.joint(x)
    for c in itertools.product((0, 1), repeat=K):
        found = energies(torch.tensor(c).double()[None, None])[:, 0]
        for i, table in enumerate(tables):
            for y in range(CLASSES):
                assert found[i, y].item() == pytest.approx(table[c, y], abs=1e-10)


def test_loss_is_the_papers(enumerated):
    network, x, _ = enumerated
    c = torch.randint(0, 2, (6, K), generator=torch.Generator().manual_seed(1)).double()
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    flips = draw_flips(6, K, torch.Generator().manual_seed(3))
    assert flips.any()
    expected = 0.0
    for i in range(6):
        of_class = network.class_energy(x[i : i + 1])[0]
        expected += of_class[y[i]] + torch.log(torch.exp(-of_class).sum())
        for k, pair in enumerate(network.concept_energy(x[i : i + 1])[0]):
            loss = pair[int(c[i, k])] + torch.log(torch.exp(-pair).sum())
            expected += network.concept_weight * loss
        for flip in flips[i]:
            states = [c[i], (c[i] - flip.double()).abs()][: 1 + bool(flip.any())]
            z = sum(torch.exp(-network.global_energy(state)).sum() for state in states)
            loss = network.global_energy(c[i])[y[i]] + torch.log(z)
            expected += network.global_weight * loss / flips.shape[1]
    found = network.loss(x, y, c, flips)
    assert found.item() == pytest.approx(expected.item() / 6, abs=1e-9)


def test_missing_labels_leave_the_loss_of_concepts():
    network, x, y = rough_network(1), pictures(2), torch.tensor([0, 1])
    network.global_weight = 0.0
    none = torch.zeros(2, 1, K, dtype=torch.bool)
    c = torch.tensor([[0.0, 1.0, 1.0, torch.nan], [1.0, 0.0, torch.nan, 1.0]]).double()
    losses = [network.loss(x, y, c, none)]
    for guess in (0.0, 1.0):
        full = network.loss(x, y, c.nan_to_num(guess), none)
        energy = network.concept_energy(x)
        for i, k in ((0, 3), (1, 2)):
            own = energy[i, k, int(guess)] + (-energy[i, k]).logsumexp(0)
            full = full - network.concept_weight * own / 2
        losses.append(full)
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


# -- inference --------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [{}, {1: 1}, {0: 0, 3: 1}])
def test_inference_finds_the_enumerated_minimum(enumerated, known, device):
    network, x, tables = enumerated
    network = rough_network(0, device=device)
    fixed = torch.full((6, K), torch.nan, dtype=torch.float64, device=device)
    for k, value in known.items():
        fixed[:, k] = value
    concepts, logits = infer(network.joint(x.to(device)), fixed)
    for i, table in enumerate(tables):
        allowed = {s: e for s, e in table.items() if all(s[0][k] == v for k, v in known.items())}
        c, y = min(allowed, key=allowed.get)
        assert tuple((concepts[i] > 0.5).int().tolist()) == c
        assert int(logits[i].argmax()) == y
        for k in range(K):
            if k in known:
                assert concepts[i, k] == known[k]
                continue
            flipped = (*c[:k], 1 - c[k], *c[k + 1 :])
            here, there = math.exp(-table[c, y]), math.exp(-table[flipped, y])
            present = here if c[k] else there
            assert concepts[i, k].item() == pytest.approx(present / (here + there), abs=1e-9)
        of_class = torch.tensor(
            [-table[c, m] for m in range(CLASSES)], dtype=torch.float64
        ).softmax(0)
        torch.testing.assert_close(logits[i].softmax(0).cpu(), of_class, atol=1e-9, rtol=0)


def test_gradient_inference_finds_the_optimum_in_99_percent():
    right = plain = n = 0
    for seed, k, scale in itertools.product(range(3), (3, 8), (1.0, 5.0, 20.0)):
        network = rough_network(seed, k=k, n_classes=4, scale=scale)
        energies = network.joint(pictures(100, seed))
        fixed = torch.full((100, k), torch.nan, dtype=torch.float64)
        fixed[::3, 0] = 1.0
        truth = energy_inference.enumerated_minimum(energies, fixed)
        lowest = energies(truth[:, None]).amin((1, 2))
        found = energies(gradient_minimum(energies, fixed)[:, None]).amin((1, 2))
        alone = torch.where(fixed.isnan(), (energies.logits > 0).double(), fixed)
        right += int((found <= lowest + 1e-9).sum())
        plain += int((energies(alone[:, None]).amin((1, 2)) <= lowest + 1e-9).sum())
        n += 100
    assert right >= 0.99 * n
    assert plain < 0.6 * n  # what the pictures alone say is not the answer


def test_gradient_inference_keeps_nothing_between_batches(monkeypatch):
    monkeypatch.setattr(energy_inference, "MAX_STATES", 1)
    network, x = rough_network(2), pictures(40)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    together = infer(network.joint(x))
    again = infer(network.joint(x))
    torch.testing.assert_close(together, again, rtol=0, atol=0)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None for p in network.parameters())


# -- probabilities ----------------------------------------------------------------------------


def test_conditional_probabilities_equal_the_enumerated_ones(enumerated, joint):
    p = probabilities(enumerated[2])
    close = {"abs": 1e-6}
    for y in range(CLASSES):
        given_y = joint.given(label=y)
        for c, found in zip(
            joint.concepts.int().tolist(), given_y.probabilities[:, y], strict=True
        ):
            truth = conditional(p, lambda a, _, c=tuple(c): a == c, lambda _, b, y=y: b == y)
            assert found.item() == pytest.approx(truth, **close)
        table, pairs = joint.concepts_given_class(), joint.concepts_given_concepts(y)
        for k in range(K):
            truth = conditional(p, lambda a, _, k=k: a[k] == 1, lambda _, b, y=y: b == y)
            assert table[y, k].item() == pytest.approx(truth, **close)
            assert given_y.concept_probabilities[k].item() == pytest.approx(truth, **close)
            for j, value in itertools.product(range(K), (0, 1)):

                def given(a, b, j=j, value=value, y=y):
                    return a[j] == value and b == y

                truth = conditional(p, lambda a, _, k=k: a[k] == 1, given)
                found = joint.given({f"c{j}": value}, label="abc"[y]).concept_probabilities[k]
                assert found.item() == pytest.approx(truth, **close)
                if value == 1:
                    assert pairs[j, k].item() == pytest.approx(truth, **close)
    for c in itertools.product((0, 1), repeat=K):
        found = joint.given(dict(enumerate(c))).class_probabilities
        for y in range(CLASSES):
            truth = conditional(p, lambda _, b, y=y: b == y, lambda a, _, c=c: a == c)
            assert found[y].item() == pytest.approx(truth, **close)


def test_what_is_missing_in_a_picture(enumerated):
    """p(c_−k, y | x, c_k)."""
    network, x, tables = enumerated
    names = [f"c{k}" for k in range(K)]
    found = JointDistribution(*average(network.joint(x[2:3]), 0), names, list("abc")).given({2: 1})
    p = probabilities(tables[2:3])
    for c, row in zip(found.concepts.int().tolist(), found.probabilities, strict=True):
        for y in range(CLASSES):
            truth = conditional(
                p, lambda a, b, s=(tuple(c), y): (a, b) == s, lambda a, _: a[2] == 1
            )
            assert row[y].item() == pytest.approx(truth, abs=1e-6)


def test_gibbs_samples_follow_the_enumerated_distribution(enumerated, joint, monkeypatch):
    network, x, _ = enumerated
    monkeypatch.setattr(energy_inference, "MAX_STATES", 1)
    drawn = JointDistribution(*average(network.joint(x), 0), joint.concept_names, list("abc"))
    assert len(drawn.concepts) >= energy_inference.SAMPLES
    for of in ("class_probabilities", "concept_probabilities"):
        torch.testing.assert_close(getattr(drawn, of), getattr(joint, of), rtol=0, atol=0.015)
    torch.testing.assert_close(
        drawn.concepts_given_concepts(1), joint.concepts_given_concepts(1), rtol=0, atol=0.03
    )


def test_heatmaps_show_the_tables(joint):
    by_class, by_concept = joint.plot_classes(), joint.plot_concepts("b")
    for figure, table in (
        (by_class, joint.concepts_given_class()),
        (by_concept, joint.concepts_given_concepts("b")),
    ):
        ax = figure.axes[0]
        torch.testing.assert_close(torch.tensor(ax.images[0].get_array()), table)
        assert [t.get_text() for t in ax.get_xticklabels()] == joint.concept_names
    assert "in b" in by_concept.axes[0].get_title()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"concepts": {"c9": 1}}, "'c9' is no concept of"),
        ({"concepts": {7: 1}}, "7 is no concept of"),
        ({"label": "z"}, "'z' is no class of"),
        ({"concepts": {"c1": 0.4}}, "0.4: it is 0 or 1"),
    ],
)
def test_unknown_conditions_are_refused(joint, given, message):
    with pytest.raises(ValueError, match=message):
        joint.given(**given)


def test_impossible_conditions_are_refused():
    energies = Energies(
        torch.zeros(1, 2), torch.tensor([[[0.0, 1e4], [0.0, 0.0]]]), lambda c: c.new_zeros(2)
    )
    joint = JointDistribution(*average(energies, 0), ["a", "b"], ["x", "y"])
    with pytest.raises(ValueError, match="no probability"):
        joint.given({"a": 1})


# -- the estimator on planted pictures ----------------------------------------------------------

GROUP = ("red disc", "blue square", "yellow star", "green triangle")


@pytest.fixture(scope="module")
def planted():
    data = PlantedConcepts(1500, seed=11, correlation={GROUP: 0.8})
    network = small_cnn(PlantedConcepts(3000, seed=0), seed=0)
    with torch.no_grad():
        features = torch.cat([network.features(x).mean((2, 3)) for x in data.images.split(128)])
    return data, features


@pytest.fixture(scope="module")
def cbm(planted):
    data, features = planted
    return EnergyCBM(concept_names=data.concept_names, max_epochs=60).fit(
        features[:1000], data.labels[:1000], concepts=data.concepts[:1000]
    )


def test_learnt_concepts_given_class_are_the_planted_ones(planted, cbm):
    data, features = planted
    error = cbm.joint(features[:1000]).concepts_given_class() - data.concepts_given_class()
    assert error.abs().mean() < 0.05
    chance = data.concepts_given_class() - data.concepts_given_class().mean(0)
    assert chance.abs().mean() > 0.15  # one table for all classes would not do


def test_global_energy_learns_what_goes_together(planted, cbm):
    """p(c) of the global energy alone, and which classes it gives to concepts."""
    data, _ = planted
    energy = cbm.network_.global_energy(data.vectors.float()).double()
    joint = JointDistribution(
        data.vectors, (-energy).flatten().softmax(0).reshape(energy.shape), GROUP, ["y"] * 3
    )
    truth = JointDistribution(data.vectors, data.joint(), GROUP, ["y"] * 3)
    error = joint.concepts_given_concepts() - truth.concepts_given_concepts()
    assert error.abs().mean() < 0.08
    right = (-energy).argmax(1) == data.truth_table()
    assert (data.joint().sum(1) * right).sum() > 0.97


def test_predictions(planted, cbm):
    data, features = planted
    assert cbm.score(features[1000:], data.labels[1000:]) > 0.93
    found = cbm.predict_concepts(features[1000:]) > 0.5
    assert (found == data.concepts[1000:]).double().mean() > 0.85


def test_a_correction_moves_correlated_concepts_and_the_class(planted, cbm):
    _, features = planted
    # Of pictures that say nothing the correction says all: the group comes along, both ways.
    unsure = torch.full((1, 8), 0.5)
    mask = torch.arange(8)[None] == 0
    for value in (0.0, 1.0):
        found = cbm.codes_with(unsure, torch.full((1, 8), value), mask)[0]
        assert found[0] == value
        assert ((found[1:4] > 0.5) == bool(value)).all()
        assert (found[1:4] - value).abs().max() < 0.35  # √0.8 ≈ 0.89 stay with the group
    # Red discs vote for the circus.
    x = features[1000:]
    odds = [cbm.intervene(x, {"red disc": value}).log_softmax(1)[:, 0] for value in (0, 1)]
    assert (odds[1] > odds[0]).double().mean() > 0.9


def test_codes_with_moves_the_others_as_concepts_with_but_for_the_class(planted, cbm):
    _, features = planted
    codes = cbm.network_.concepts(features[:50])
    mask = torch.zeros_like(codes, dtype=torch.bool)
    mask[:, 0] = True
    values = torch.ones_like(codes)
    energies = cbm.network_.joint(features[:50])
    energies = Energies(torch.zeros_like(energies.of_class), energies.of_concepts, energies.of_both)
    expected = infer(energies, torch.where(mask, values, torch.nan))[0]
    torch.testing.assert_close(cbm.codes_with(codes, values, mask), expected, atol=1e-3, rtol=0)


def test_saved_and_loaded_it_is_the_same(planted, cbm, tmp_path):
    _, features = planted
    cbm.save(tmp_path / "cbm")
    loaded = EnergyCBM.load(tmp_path / "cbm")
    x = features[:50]
    assert torch.equal(loaded.decision_function(x), cbm.decision_function(x))
    assert torch.equal(loaded.joint(x).probabilities, cbm.joint(x).probabilities)


def test_missing_labels_and_seeds(planted):
    data, features = planted
    c = data.concepts[:300].float()
    c[torch.rand(c.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = torch.nan
    args = (features[:300], data.labels[:300])
    a, b = (EnergyCBM(max_epochs=5, random_state=3).fit(*args, concepts=c) for _ in range(2))
    other = EnergyCBM(max_epochs=5, random_state=4).fit(*args, concepts=c)
    x = features[300:320]
    assert torch.equal(a.decision_function(x), b.decision_function(x))
    assert not torch.equal(a.decision_function(x), other.decision_function(x))


def test_bad_input(planted, cbm):
    data, features = planted
    levels = data.concepts[:100] * 0.5
    with pytest.raises(ValueError, match=r"concepts of 0 and 1, these have others: \['concept 0'"):
        EnergyCBM().fit(features[:100], data.labels[:100], concepts=levels)
    with pytest.raises(ValueError, match="corrections must be 0 or 1"):
        cbm.intervene(features[:2], {"red disc": 0.3})
    with pytest.raises(ValueError, match="no concept called 'red disk'"):
        cbm.intervene(features[:2], {"red disk": 1})
