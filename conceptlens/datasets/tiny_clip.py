"""A tiny CLIP: open_clip's own model, trained on planted pictures and their captions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
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
BATCH = 128
N_STEPS = 1000
LEARNING_RATE = 3e-3
MAX_SCALE = 50.0
WORD_SCALE = 10.0


def config(size: int) -> dict[str, Any]:
    """open_clip's configuration of the model for pictures of `size` pixels."""
    return {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": size,
            "patch_size": 8,
            "width": 64,
            "head_width": 16,
            "layers": 3,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": 48,
            "vocab_size": 49408,
            "width": 32,
            "heads": 4,
            "layers": 2,
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

    Half of the captions are cut down to one of the things in the picture and the others to some
    of them, so that the embedding of a single thing means that thing.

    Parameters
    ----------
    data : PlantedConcepts
        The training set; 3000 pictures of the default kind do well.
    seed : int
        Fixes the weights at the start, the order of pictures and how captions are cut.

    References
    ----------
    Radford et al., "Learning transferable visual models from natural language supervision", ICML
    2021; the model's code is of open_clip (Ilharco et al., 2021).
    """
    model = zoo.trained(
        lambda: _build(data.size),
        lambda model: _train(TinyCLIP(model, data.size), data, seed),
        zoo.data_key(data, seed, (*zoo.SOURCES, "tiny_clip.py")),
        seed,
    )
    return TinyCLIP(model, data.size)


def _build(size: int) -> nn.Module:
    from open_clip.model import CLIP

    model = CLIP(**config(size))
    with torch.no_grad():
        # open_clip starts with words that are all but equal, which costs the first few epochs of
        # a large model and most of the training of this one.
        model.token_embedding.weight.mul_(WORD_SCALE)
    return model


def _train(tiny: TinyCLIP, data: PlantedConcepts, seed: int) -> None:
    """Tell each picture's caption from the batch's others, and each caption's picture."""
    model = tiny.model
    generator = torch.Generator().manual_seed(seed)
    things = [_things(caption) for caption in data.captions]
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=N_STEPS)
    model.train()
    with bar("training TinyCLIP", N_STEPS, "step") as progress:
        for _ in range(N_STEPS):
            rows = torch.randint(len(data), (BATCH,), generator=generator)
            sides = torch.nonzero(torch.rand(2, generator=generator) < 0.5).flatten() + 2
            images = model.encode_image(data.images[rows].flip(sides.tolist()), normalize=True)
            captions = [_caption(things[i], generator) for i in rows.tolist()]
            texts = model.encode_text(tiny.tokenizer(captions), normalize=True)
            # CLIP bounds its temperature; so small a batch needs a lower bound.
            logits = model.logit_scale.exp().clamp(max=MAX_SCALE) * images @ texts.T
            own = torch.arange(BATCH)
            loss = nn.functional.cross_entropy(logits, own)
            loss = loss + nn.functional.cross_entropy(logits.T, own)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            progress.update()


def _things(caption: str) -> list[str]:
    """What a caption lists: ["a red disc", "a blue square"]."""
    return caption.removeprefix(PREFIX).replace(" and ", ", ").split(", ")


def _caption(things: list[str], generator: torch.Generator) -> str:
    """A caption of one of the things, or of some, in any order."""
    order = torch.randperm(len(things), generator=generator).tolist()
    single = torch.rand((), generator=generator) < 0.5
    n = 1 if single else int(torch.randint(len(things), (), generator=generator)) + 1
    return PREFIX + " and ".join(things[i] for i in order[:n])
