"""The network that the benchmarks explain: the zoo's CNN on the default planted concepts."""

from conceptlens import Backbone
from conceptlens.datasets import PlantedConcepts
from conceptlens.datasets.zoo import small_cnn

N_TRAINING = 3000


def network(seed: int) -> tuple[Backbone, PlantedConcepts]:
    """A network, cut after its last convolution, and its training set; both depend on the seed.

    It is trained when it is first asked for, in about a minute, and kept in the cache.
    """
    data = PlantedConcepts(N_TRAINING, seed=seed)
    return Backbone(small_cnn(data, seed=seed), "features", class_names=data.class_names), data
