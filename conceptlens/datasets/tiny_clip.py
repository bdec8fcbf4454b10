"""A tiny CLIP: open_clip's own model, trained on planted pictures and their captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ..files import write_atomically
from ..progress import bar
from ..text import TextEncoder
from . import zoo
from .planted import PlantedConcepts

if TYPE_CHECKING:
    from ..backbone import Backbone

PREFIX = "a picture of "
TEMPLATES = (PREFIX + "a {}",)
# For the default kind of pictures and seed 0; benchmarks/tiny_clip.py makes it.
SHIPPED = Path(__file__).parent / "weights" / "tiny_clip.safetensors"
BATCH = 64  # pictures and texts a step
N_STEPS = 300
LEARNING_RATE = 5e-3
WORDS = "token_embedding.weight"
# What pictures and captions follow from, besides their number and seed.
KIND = ("size", "concepts", "prevalence", "correlation", "confounder", "layout")


def config(size: int) -> dict[str, Any]:
    """open_clip's configuration of the model for pictures of `size` pixels."""
    return {
        "embed_dim": 64,
        "init_logit_bias": -1.0,
        "vision_cfg": {"image_size": size, "timm_model_name": "test_resnet"},
        "text_cfg": {
            "context_length": 48,
            "vocab_size": 49408,
            "width": 64,
            "heads": 4,
            "layers": 1,
            "mlp_ratio": 2.0,
        },
    }


class TinyCLIP:
    """An image tower and a text tower that agree on planted pictures and what is in them.

    Attributes
    ----------
    model : open_clip.CLIP
        In eval mode. It takes pictures in [0, 1] of the training pictures' size.
    tokenizer : callable
        open_clip's own, list of str → tokens ``(m, context)``.
    encode_text : TextEncoder
        Maps a list of m texts to unit rows ``(m, e)``.
    size : int
        Side of the pictures.
    """

    def __init__(self, model: Any, size: int) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self.model = model
        self.size = size
        self.tokenizer = SimpleTokenizer(context_length=config(size)["text_cfg"]["context_length"])
        self.encode_text = TextEncoder.of_clip(model, self.tokenizer)

    def encode_words(self, words: Sequence[str]) -> Tensor:
        """Embed things such as "red disc", each in the sentence of a caption: ``(m, e)``."""
        return self.encode_text([TEMPLATES[0].format(word) for word in words])

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed pictures ``(B, 3, size, size)`` as unit rows ``(B, e)``."""
        with torch.no_grad():
            parts = [self.model.encode_image(x, normalize=True) for x in images.split(256)]
        return torch.cat(parts)

    def backbone(
        self,
        classes: Sequence[str],
        layer: str | None = None,
        *,
        templates: Sequence[str] = TEMPLATES,
    ) -> Backbone:
        """Cut the image tower as a zero-shot classifier, as `Backbone.from_open_clip` does."""
        from ..backbone import Backbone
        from ..classifiers import zero_shot

        made = zero_shot(self.model, self._transform(), self.encode_text, classes, templates)
        return Backbone(*made.as_arguments(layer))

    def save(self, folder: str | Path) -> str:
        """Write configuration and weights; return the name for `Backbone.from_open_clip`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        preprocess = {"size": self.size, "mean": [0.0] * 3, "std": [1.0] * 3}
        record = {"model_cfg": config(self.size), "preprocess_cfg": preprocess}
        weights = {name: t.cpu().contiguous() for name, t in self.model.state_dict().items()}
        write_atomically(folder / "open_clip_model.safetensors", save_tensors(weights))
        write_atomically(folder / "open_clip_config.json", json.dumps(record, indent=1).encode())
        return f"local-dir:{folder}"

    def _transform(self) -> Any:
        from torchvision import transforms as t

        side = t.Resize(self.size, interpolation=t.InterpolationMode.BICUBIC)
        return t.Compose([side, t.CenterCrop(self.size), t.ToTensor()])

    def __repr__(self) -> str:
        return f"TinyCLIP(pictures of {self.size} × {self.size} pixels)"


def tiny_clip(data: PlantedConcepts, *, seed: int = 0) -> TinyCLIP:
    """Train a `TinyCLIP` on planted pictures and their captions, or read it: as `zoo.small_cnn`.

    The package carries the weights for pictures of the default kind and seed 0, whatever their
    number and seed; they were trained on ``PlantedConcepts(3000)``.

    Parameters
    ----------
    data : PlantedConcepts
        The training set; 3000 pictures of the default kind do well.
    seed : int
        Fixes the weights at the start, the order of pictures and how captions are cut.

    Notes
    -----
    A text lists one thing, or some of the things in a picture's caption. It goes with all pictures
    that hold them, not only with the one it was taken from: with so few things to say, CLIP's own
    loss would count most of a text's true pictures as wrong. Each pair of a picture and a text is
    told by itself, as true or not, with SigLIP's loss.

    References
    ----------
    Radford et al., "Learning transferable visual models from natural language supervision", ICML
    2021; Zhai et al., "Sigmoid loss for language image pre-training", ICCV 2023. The model's code
    is of open_clip (Ilharco et al., 2021), its image tower of timm (Wightman, 2019).
    """
    if seed == 0 and _kind(data) == _kind(PlantedConcepts(1)):
        model = unpack(load_tensors(SHIPPED.read_bytes()), build(data.size, 0))
        return TinyCLIP(model.eval(), data.size)
    model = zoo.trained(
        lambda: build(data.size, seed),
        lambda model: train(TinyCLIP(model, data.size), data, seed),
        zoo.data_key(data, seed, (*zoo.SOURCES, "tiny_clip.py")),
        seed,
    )
    return TinyCLIP(model, data.size)


def build(size: int, seed: int) -> nn.Module:
    """Make the untrained model; the random state stays as it is."""
    from open_clip.model import CLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIP(**config(size))


def _kind(data: PlantedConcepts) -> list[Any]:
    return [data.settings[name] for name in KIND]


def train(tiny: TinyCLIP, data: PlantedConcepts, seed: int) -> None:
    """Tell of each picture and text whether the picture holds what the text says."""
    model = tiny.model
    generator = torch.Generator().manual_seed(seed)
    captions = [_things(caption) for caption in data.captions]
    things = sorted({thing for caption in captions for thing in caption})
    present = torch.tensor([[float(thing in c) for thing in things] for c in captions])
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=N_STEPS, pct_start=0.2
    )
    model.train()
    with bar("training TinyCLIP", N_STEPS, "step") as progress:
        for _ in range(N_STEPS):
            rows = torch.randint(len(data), (BATCH,), generator=generator)
            sides = torch.nonzero(torch.rand(2, generator=generator) < 0.5).flatten() + 2
            images = model.encode_image(data.images[rows].flip(sides.tolist()), normalize=True)
            said = _some(present, generator)
            texts = [_text(things, row, generator) for row in said.bool()]
            texts = model.encode_text(tiny.tokenizer(texts), normalize=True)
            true = present[rows] @ said.T == said.sum(1)  # (BATCH, BATCH): picture, text
            logits = model.logit_scale.exp() * images @ texts.T + model.logit_bias
            loss = nn.functional.binary_cross_entropy_with_logits(logits, true.to(logits))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            progress.update()


def _things(caption: str) -> list[str]:
    """What a caption lists: ["a red disc", "a blue square"]."""
    return caption.removeprefix(PREFIX).replace(" and ", ", ").split(", ")


def _some(present: Tensor, generator: torch.Generator) -> Tensor:
    """What texts say, rows of 0 and 1: half of them one thing, the rest some of a picture's.

    All things are equally often alone, so that none is rarely told from the others.
    """
    n, n_things = present.shape
    some = present[torch.randint(n, (BATCH,), generator=generator)]
    some = some * (torch.rand(some.shape, generator=generator) < 0.5)
    one = torch.eye(n_things)[torch.randint(n_things, (BATCH,), generator=generator)]
    alone = (torch.rand(BATCH, generator=generator) < 0.5) | (some.sum(1) == 0)
    return torch.where(alone[:, None], one, some)


def _text(things: list[str], said: Tensor, generator: torch.Generator) -> str:
    """Say the things where `said` ``(n_things,)`` is true, in any order."""
    order = torch.randperm(len(things), generator=generator).tolist()
    return PREFIX + " and ".join(things[i] for i in order if said[i])


def pack(model: nn.Module, start: nn.Module) -> dict[str, Tensor]:
    """The weights as 16-bit numbers, without the words that have not moved from the start."""
    tensors = dict(model.state_dict())
    words = tensors.pop(WORDS)
    moved = (words != start.state_dict()[WORDS]).any(1).nonzero().flatten()
    packed = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    return packed | {WORDS: words[moved].half(), "moved": moved}


def unpack(packed: dict[str, Tensor], start: nn.Module) -> nn.Module:
    """Put what `pack` gave into the model as it was at the start."""
    words = start.state_dict()[WORDS]
    words[packed.pop("moved")] = packed.pop(WORDS).float()
    start.load_state_dict({**packed, WORDS: words})
    return start
