"""Planted pictures against what is said of them: counts, closed forms and pixels."""

import itertools

import pytest
import torch
from scipy.stats import chisquare

from conceptlens import Pictures
from conceptlens.datasets import Formula, PlantedConcepts, Votes
from conceptlens.datasets.distribution import concept_table, total_indices
from conceptlens.datasets.drawing import COLOURS, PATTERNS, SHAPES, Drawing

FOUR = ("red disc", "blue square", "yellow star", "green cross")
RULE = Formula({"yes": "red disc and not (blue square or yellow star)"}, otherwise="no")
EVERYTHING = (
    "red disc",
    "striped blue star | plain blue star",
    "checked pink heart",
    "dotted yellow border",
    "flower background",
)
SETTINGS = {
    "independent": {},
    "correlated": {
        "prevalence": [0.3, 0.3, 0.6, 0.3],
        "correlation": {("red disc", "blue square", "green cross"): 0.6},
        "label_noise": 0.2,
    },
    "always together": {
        "correlation": {("red disc", "blue square"): 1.0, ("yellow star", "green cross"): 0.4},
    },
}


def pictures(n=64, concepts=FOUR, rule=RULE, **settings):
    return PlantedConcepts(n, concepts=concepts, rule=rule, **settings)


def counts(data):
    """How often each cell of the joint table occurs: (2^m, n_classes)."""
    m, n_classes = data.vectors.shape[1], len(data.class_names)
    row = (data.concepts * 2 ** torch.arange(m - 1, -1, -1)).sum(1)
    assert torch.equal(data.vectors[row], data.concepts)
    return torch.bincount(row * n_classes + data.labels, minlength=2**m * n_classes)


# -- the distribution -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_empirical_joint_is_the_stated_one(name):
    data = pictures(20_000, **SETTINGS[name])
    expected = data.joint().flatten() * len(data)
    seen = counts(data)
    assert seen[expected == 0].sum() == 0
    frequent = expected >= 5
    f_seen = torch.cat([seen[frequent], seen[~frequent].sum()[None]])
    f_expected = torch.cat([expected[frequent], expected[~frequent].sum()[None]])
    possible = f_expected > 0
    assert chisquare(f_seen[possible], f_expected[possible]).pvalue > 0.001


def test_the_test_of_the_joint_can_fail():
    """The counts of one setting are far from another's table."""
    seen = counts(pictures(20_000, prevalence=0.52))
    expected = pictures(1).joint().flatten() * 20_000
    possible = expected > 0
    assert chisquare(seen[possible], expected[possible] * seen.sum() / 20_000).pvalue < 1e-6


@pytest.mark.parametrize("name", SETTINGS)
def test_joint_has_the_moments_asked_for(name):
    data = pictures(1, **SETTINGS[name])
    joint, v = data.joint(), data.vectors.double()
    assert float(joint.sum()) == pytest.approx(1, abs=1e-12)
    p = joint.sum(1) @ v
    torch.testing.assert_close(p, torch.tensor(data.prevalence).double())
    spread = (p * (1 - p)).sqrt()
    correlation = ((v - p).T * joint.sum(1) @ (v - p)) / spread.outer(spread)
    wanted = torch.eye(4, dtype=torch.float64)
    for names, r in SETTINGS[name].get("correlation", {}).items():
        for a, b in itertools.permutations([FOUR.index(n) for n in names], 2):
            wanted[a, b] = r
    torch.testing.assert_close(correlation, wanted, atol=1e-12, rtol=0)
    wrong = joint[range(16), 1 - data.truth_table()].sum()
    assert float(wrong) == pytest.approx(SETTINGS[name].get("label_noise", 0.0), abs=1e-12)


def test_concepts_always_together_are():
    data = pictures(500, **SETTINGS["always together"])
    assert torch.equal(data.concepts[:, 0], data.concepts[:, 1])
    assert not torch.equal(data.concepts[:, 2], data.concepts[:, 3])


def test_concepts_given_class_is_the_conditional_probability():
    data = pictures(1, **SETTINGS["correlated"])
    joint = data.joint()
    for i, y in itertools.product(range(4), range(2)):
        both = sum(joint[r, y] for r in range(16) if data.vectors[r, i])
        assert float(data.concepts_given_class()[y, i]) == pytest.approx(both / joint[:, y].sum())


def test_class_level_labels_are_the_majority():
    data = pictures(300, labelling="class", prevalence=[0.5, 0.5, 0.3, 0.7])
    majority = torch.tensor([[True, False, False, True], [False, True, False, True]])
    # "no" holds the square in 0.5 / (1 - 0.5·0.5·0.7) = 0.61 of its pictures, the disc in 0.39.
    assert torch.equal(data.concept_labels, majority[data.labels])
    assert not torch.equal(data.concept_labels, data.concepts)


# -- rules ----------------------------------------------------------------------------------------


def test_formula_is_its_truth_table():
    data = pictures(1)
    for (disc, square, star, _), label in zip(
        data.vectors.tolist(), data.truth_table().tolist(), strict=True
    ):
        assert label == (0 if disc and not (square or star) else 1)


def test_formula_takes_the_first_true_class_and_the_longest_name():
    names = ["disc", "red disc"]
    rule = Formula({"a": "red disc", "b": "disc or red disc"}, otherwise="c")
    vectors = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert rule.scores(vectors, names).argmax(1).tolist() == [2, 0, 1, 0]


def test_votes_are_counted():
    rule = Votes({"a": {"x": 2, "y": 1}, "b": {}}, bias={"b": 1.5})
    vectors = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    scores = torch.tensor([[0.0, 1.5], [1.0, 1.5], [2.0, 1.5], [3.0, 1.5]], dtype=torch.float64)
    assert torch.equal(rule.scores(vectors, ["x", "y"]), scores)


def test_default_classes_have_no_ties():
    data = PlantedConcepts(1)
    best = data.rule.scores(data.vectors, data.concept_names).topk(2, dim=1).values
    assert ((best[:, 0] - best[:, 1]) >= 1).all()


# -- importance -----------------------------------------------------------------------------------


def test_importance_of_a_linear_score_is_closed_form():
    rule = Votes({"a": {"red disc": 3.0, "blue square": -1.0}, "b": {"yellow star": 1.0}})
    data = pictures(1, rule=rule, prevalence=[0.2, 0.5, 0.4, 0.5])
    parts = torch.tensor([9 * 0.2 * 0.8, 1 * 0.25], dtype=torch.float64)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    expected[0, :2] = parts / parts.sum()
    expected[1, 2] = 1.0
    torch.testing.assert_close(data.true_importance("score"), expected)


def test_importance_of_a_conjunction_is_closed_form():
    """f = x·y: Var(f) = pq(1 - pq) and E[Var(f | y)] = q·p(1 - p)."""
    data = pictures(
        1, rule=Formula({"both": "red disc and blue square"}), prevalence=[0.3, 0.6, 0.5, 0.5]
    )
    p, q = 0.3, 0.6
    wanted = torch.tensor([q * p * (1 - p), p * q * (1 - q), 0, 0]) / (p * q * (1 - p * q))
    torch.testing.assert_close(data.true_importance(), wanted.double().expand(2, -1))


def test_importance_is_what_monte_carlo_finds():
    generator = torch.Generator().manual_seed(0)
    prevalence = [0.3, 0.5, 0.7]
    scores = torch.rand(8, 2, generator=generator, dtype=torch.float64)
    a, b = (torch.rand(400_000, 3, generator=generator) < torch.tensor(prevalence) for _ in "ab")
    place = torch.tensor([4, 2, 1])
    for i, found in enumerate(total_indices(scores, prevalence).T):
        mixed = a.clone()
        mixed[:, i] = b[:, i]
        f_a, f_mixed = scores[(a * place).sum(1)], scores[(mixed * place).sum(1)]
        wanted = ((f_a - f_mixed) ** 2).mean(0) / 2 / f_a.var(0)
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.002)


def test_constant_scores_have_no_important_concept():
    assert torch.equal(
        total_indices(torch.full((4, 1), 0.3), [0.5, 0.5]), torch.zeros(1, 2, dtype=torch.float64)
    )


def test_one_concept_a_group_is_independence():
    table = concept_table([0.3, 0.6], [])
    assert table.tolist() == pytest.approx([0.28, 0.42, 0.12, 0.18])


# -- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["scattered", "hand"])
@pytest.mark.parametrize("concepts", [FOUR, EVERYTHING])
def test_pixels_outside_all_masks_do_not_depend_on_the_concepts(layout, concepts):
    rule = Formula({"yes": "red disc"}, otherwise="no")
    data = pictures(
        80, concepts, rule, layout=layout, confounder={"yes": 0.5}, prevalence=0.5, seed=3
    )
    for change in (torch.zeros(len(concepts)), torch.ones(len(concepts)), None):
        other = ~data.concepts if change is None else change.bool().expand_as(data.concepts)
        images, masks = data.render(other)
        outside = ~(data.masks | masks).any(1)
        assert torch.equal(images.movedim(1, -1)[outside], data.images.movedim(1, -1)[outside])
        assert not masks[~other].any()


@pytest.mark.parametrize("i", range(len(EVERYTHING)))
def test_a_concept_changes_its_own_mask_and_nothing_else(i):
    data = pictures(40, EVERYTHING, Formula({"yes": "red disc"}))
    other = data.concepts.clone()
    other[:, i] = ~other[:, i]
    images, masks = data.render(other)
    changed = (images != data.images).any(1)
    assert not changed[~(masks[:, i] | data.masks[:, i])].any()
    assert changed.flatten(1).any(1).all()
    if "|" not in EVERYTHING[i]:
        # Soft edges may be too faint to tell apart; the rest of the mask is seen.
        assert changed.sum() > 0.9 * (masks[:, i] | data.masks[:, i]).sum()


def test_masks_of_symbols_do_not_overlap_and_lie_inside():
    data = pictures(100)
    assert data.masks.sum(1).max() == 1
    area = data.masks.flatten(2).sum(2)
    assert (area[data.concepts] > 80).all()
    assert (area[~data.concepts] == 0).all()


def test_symbols_are_whole():
    """No symbol is cut off: the area of a concept's mask varies only as its radius squared."""
    data = pictures(400, ["red disc"], Formula({"yes": "red disc"}), prevalence=1.0)
    area = data.masks[:, 0].flatten(1).sum(1).double()
    assert float(area.max() / area.min()) < (0.88 / 0.78) ** 2 * 1.15
    columns = data.masks[:, 0].any(1)
    width = columns.sum(1)
    height = data.masks[:, 0].any(2).sum(1)
    assert (width - height).abs().max() <= 1


def test_scattered_places_vary_and_a_hands_do_not():
    scattered, hand = pictures(200), pictures(200, layout="hand")
    for i in range(4):
        assert scattered.masks[:, i].any(0).float().mean() > 0.45
        assert hand.masks[:, i].any(0).float().mean() < 0.13
    first, second = hand.masks[:, 0].any(0), hand.masks[:, 1].any(0)
    assert not (first & second).any()


def test_the_artefact_follows_the_class():
    data = pictures(600, confounder={"yes": 1.0, "no": 0.1}, label_noise=0.1)
    yes = data.labels == 0
    assert data.artefact[yes].all()
    assert 0.05 < data.artefact[~yes].float().mean() < 0.16
    assert torch.equal(data.artefact_masks.flatten(1).any(1), data.artefact)
    assert not (data.artefact_masks[:, None] & data.masks).any()
    tag = data.images.movedim(1, -1)[data.artefact_masks]
    assert tag.max() > 0.99
    assert tag.min() < 0.15


def test_counter_biased_set_moves_the_artefact():
    data = pictures(50, confounder={"yes": 1.0})
    test = data.like(200, seed=9, confounder={"no": 1.0})
    assert torch.equal(test.artefact, test.labels == 1)
    clean = data.like(200, seed=9, confounder={})
    assert not clean.artefact.any()
    assert data.like(50, seed=0).settings == data.settings


def test_same_seed_same_pictures_other_seed_others():
    one, two, other = pictures(20), pictures(20), pictures(20, seed=1)
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    assert not torch.equal(one.images, other.images)


def test_no_global_random_state_is_touched():
    before = torch.get_rng_state()
    pictures(5).images
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_fits_its_circle_and_fills_some_of_it(shape):
    steps = torch.linspace(-1.5, 1.5, 301)
    x, y = steps.expand(301, 301), steps[:, None].expand(301, 301)
    inside = SHAPES[shape](x, y) < 0
    assert not (inside & (x.hypot(y) > 1.02)).any()
    assert 0.1 < float(inside.double().mean()) * 9 / torch.pi < 0.9
    assert inside.any(0).sum() > 100


def test_every_word_can_be_drawn():
    words = list(zip(itertools.cycle(PATTERNS), itertools.cycle(COLOURS), SHAPES))
    concepts = [" ".join(w) for w in words]
    data = PlantedConcepts(2, 96, concepts, Formula({"yes": concepts[0]}), prevalence=1.0)
    colours = torch.tensor([COLOURS[c] for _, c, _ in words])
    for i, colour in enumerate(colours):
        pixels = data.images[0].movedim(0, -1)[data.masks[0, i]]
        assert (pixels - colour).abs().sum(1).min() < 0.5


def test_items_are_what_pictures_and_loaders_take():
    data = pictures(6)
    item = data[2]
    assert torch.equal(Pictures(data)[2], item.image)
    assert (item.label, item.caption) == (int(data.labels[2]), data.captions[2])
    batch = next(iter(torch.utils.data.DataLoader(data, 3)))
    assert batch.image.shape == (3, 3, 64, 64)
    assert torch.equal(batch.masks, data.masks[:3])
    assert torch.equal(data[-1].image, data[5].image)
    assert len(list(data)) == 6


def test_captions_say_what_is_there():
    data = pictures(200, ["red disc", "orange star | plain blue star"], Formula({"y": "red disc"}))
    seen = {(bool(a), bool(b)): c for (a, b), c in zip(data.concepts, data.captions, strict=True)}
    assert seen == {
        (False, False): "a picture of a blue star",
        (True, False): "a picture of a red disc and a blue star",
        (False, True): "a picture of an orange star",
        (True, True): "a picture of a red disc and an orange star",
    }


def test_plot_and_repr():
    data = pictures(10)
    assert len(data.plot(10).axes) == 16
    assert "4 concepts" in repr(data)


BAD = [
    ({"n": 0}, "n must be at least 1, got 0"),
    ({"size": 20}, "size=20 is too small"),
    ({"concepts": ["red blob"]}, "'blob' in the concept 'red blob' cannot be drawn"),
    ({"concepts": ["red blue disc"]}, "two colours"),
    ({"concepts": ["red"]}, "names no shape"),
    ({"concepts": ["red background"]}, "a background"),
    ({"concepts": ["red disc"] * 2}, "different names"),
    ({"concepts": []}, "1 to 16, got 0"),
    ({"concepts": ["red disc | blue disc | white disc"]}, "only a symbol has one other drawing"),
    ({"concepts": ["red disc", "red border", "blue border"]}, "more than one border"),
    ({"rule": Votes({"a": {"unicorn": 1.0}, "b": {}})}, "'unicorn', which is not one of"),
    ({"rule": Formula({"a": "red disc xor star"})}, "is not understood"),
    ({"rule": Formula({"a": "red disc + blue square"})}, "by and, or, not"),
    ({"rule": Formula({"a": "__import__('os')"})}, "is not understood"),
    ({"prevalence": 1.5}, "prevalence must be between 0 and 1, got 1.5"),
    ({"prevalence": [0.5]}, "one a concept"),
    ({"correlation": {("red disc", "moon"): 0.5}}, "correlation must be of tuples"),
    ({"correlation": {("red disc", "blue square"): -0.5}}, "between 0 and 1, got -0.5"),
    ({"correlation": {"red disc": 0.5}}, "correlation must be of tuples"),
    (
        {"correlation": {FOUR[:2]: 0.5, FOUR[1:3]: 0.5}},
        r"correlation has \['blue square'\] in two groups",
    ),
    (
        {"correlation": {FOUR[:2]: 0.5}, "prevalence": [0.1, 0.2, 0.3, 0.4]},
        "need one prevalence",
    ),
    ({"label_noise": 2}, "label_noise must be between"),
    ({"labelling": "both"}, "labelling must be one of"),
    ({"layout": "spiral"}, "layout must be one of"),
    ({"confounder": {"maybe": 1.0}}, "confounder names"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        PlantedConcepts(**{"n": 2, "concepts": FOUR, "rule": RULE, **changes})


def test_other_bad_calls_are_named():
    with pytest.raises(ValueError, match="two classes or more"):
        Votes({"a": {}})
    with pytest.raises(ValueError, match="'b', which is not one of"):
        Votes({"a": {}, "c": {}}, bias={"b": 1.0})
    with pytest.raises(ValueError, match="different classes"):
        Formula({"a": "x"}, otherwise="a")
    with pytest.raises(ValueError, match="'class' or 'score'"):
        pictures(1).true_importance("logit")
    with pytest.raises(ValueError, match=r"\(2, 4\), got \(4,\)"):
        pictures(2).render(torch.zeros(4))
    with pytest.raises(IndexError, match="picture 2 of 2"):
        pictures(2)[2]


def test_a_drawing_is_read_in_any_order():
    assert Drawing.parse("disc striped red") == Drawing("disc", "red", "striped")
    assert Drawing.parse("star").text == "white star"
