"""Pictures from anywhere, read in a fixed order, and square crops of them."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from .checks import check_finite, check_whole

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
Transform = Callable[[Any], Tensor]


class UnreadableImageError(ValueError):
    """A picture cannot be read; the message names it."""


def read_image(path: str | Path) -> Image.Image:
    """Read a file as an RGB picture, upright as its EXIF says.

    Transparent pixels become white and 16-bit greys are scaled to 8 bits.

    Raises
    ------
    UnreadableImageError
        If the file is missing, broken, no picture, or so large that it looks like a bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return _rgb(ImageOps.exif_transpose(picture))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnreadableImageError(
            f"{path} claims more than {Image.MAX_IMAGE_PIXELS} pixels, as files do that are made "
            "to fill the memory. If you trust it, raise the limit: PIL.Image.MAX_IMAGE_PIXELS = n"
        ) from error
    except Exception as error:  # Pillow's plugins raise many kinds for broken files
        raise UnreadableImageError(f"{path} cannot be read as a picture: {error}") from error


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        wide = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray((wide / 257).round().clip(0, 255).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


class Pictures(Dataset[Tensor]):
    """Pictures in a fixed order, as the network takes them.

    Parameters
    ----------
    images : str, Path, sequence, Dataset, DataLoader or Tensor
        A folder (searched below, sorted by path); a list of paths, PIL pictures, arrays
        ``(H, W)``, ``(H, W, 3)`` or tensors ``(3, H, W)``; a Dataset whose items are such, alone or
        first in a tuple; a DataLoader that does not shuffle, of which the dataset is taken; or a
        tensor ``(n, 3, H, W)``.
    transform : callable, optional
        Turns a PIL picture into a tensor ``(3, H, W)``. Default: pixels in [0, 1]. Tensors of
        floats count as transformed already.

    Attributes
    ----------
    names : list of str
        Paths relative to the folder, a Dataset's ``picture_names``, or "picture 0", "picture 1",
        ...
    """

    def __init__(self, images: Any, transform: Transform | None = None) -> None:
        self.transform = transform
        self.num_workers: int | None = None
        if isinstance(images, DataLoader):
            if not isinstance(images.sampler, SequentialSampler):
                raise ValueError(
                    "the DataLoader shuffles or samples its pictures: the order must be fixed, "
                    "make it with shuffle=False"
                )
            self.num_workers, images = images.num_workers, images.dataset
        if isinstance(images, (str, Path)):
            folder = Path(images)
            images = _files_below(folder)
            self.names = [path.relative_to(folder).as_posix() for path in images]
        elif _is_sized(images):
            listed = images if isinstance(images, Sequence) else range(len(images))
            listed = getattr(images, "picture_names", listed)
            self.names = [
                str(item) if isinstance(item, (str, Path)) else f"picture {i}"
                for i, item in enumerate(listed)
            ]
        else:
            raise TypeError(
                "images must be a folder, a list, a Dataset, a DataLoader or a tensor, got "
                f"{type(images).__name__}"
            )
        if len(images) == 0:
            raise ValueError("there are no pictures: images is empty")
        self.source = images

    @classmethod
    def of(cls, images: Any, transform: Transform | None) -> Pictures:
        """`images` themselves if they are `Pictures`, else made of them."""
        return images if isinstance(images, cls) else cls(images, transform)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Tensor:
        item = self._item(i)
        if isinstance(item, (str, Path)):
            item = read_image(item)
        if isinstance(item, Tensor) and item.is_floating_point():
            x = item
        else:
            picture = item if isinstance(item, Image.Image) else Image.fromarray(_array(item))
            x = (self.transform or _to_unit)(_rgb(picture))
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[0] != 3:
            shape = tuple(x.shape) if hasattr(x, "shape") else type(x).__name__
            raise ValueError(f"{self.names[i]} became {shape}, expected a tensor (3, H, W)")
        check_finite(x, f"the pixels of {self.names[i]}")
        return x

    def batches(
        self, batch_size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Iterate over ``(indices, x (b, 3, H, W))``, cut at multiples of `batch_size`.

        Unreadable pictures are left out with a warning that names them.

        Raises
        ------
        UnreadableImageError
            If no picture from `start` to `stop` can be read.
        ValueError
            If their sizes differ.
        """
        check_whole(batch_size, "batch_size")
        cuts = cut_into_batches(range(start, len(self) if stop is None else stop), batch_size)
        bad: list[str] = []
        n_good = 0
        for indices, x, errors in self.read(cuts):
            bad += errors
            n_good += len(indices)
            if indices:
                yield indices, x
        if bad and not n_good:
            raise UnreadableImageError(f"none of {len(bad)} pictures can be read; first: {bad[0]}")
        warn_of_left_out(bad)

    def first(self) -> Tensor:
        """The first picture that can be read, ``(1, 3, H, W)``.

        Raises
        ------
        UnreadableImageError
            If there is none.
        """
        for i in range(len(self)):
            try:
                return self[i][None]
            except UnreadableImageError as error:
                last = error
        raise UnreadableImageError(f"none of {len(self)} pictures can be read; last: {last}")

    def read(
        self, batches: Sequence[range], device: torch.device | None = None
    ) -> Iterator[tuple[list[int], Tensor, list[str]]]:
        """Read any batches of pictures, one after the other, for a network on `device`.

        Yields for each the indices of those that can be read, their ``x (b, 3, H, W)``, empty
        where none can, and what is wrong with the others. For a GPU the memory is pinned.
        """
        device = device or torch.device("cpu")
        workers = self._workers(device) if self.num_workers is None else self.num_workers
        loader = DataLoader(
            _Batches(self, batches), batch_size=None,
            num_workers=workers, pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # it would draw a seed from the global one
        )  # fmt: skip
        for found in loader:
            if isinstance(found, ValueError):
                raise found
            yield found

    def _workers(self, device: torch.device) -> int:
        """How many processes read best.

        None for a network on the CPU, which needs the cores itself, for tensors, which need no
        reading, and where processes are not forked, as each would run the user's script again.
        """
        method = multiprocessing.get_start_method(allow_none=True)
        forked = (method or multiprocessing.get_all_start_methods()[0]) == "fork"
        if device.type == "cpu" or isinstance(self.source, Tensor) or not forked:
            return 0
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes share the cores
        return max((os.cpu_count() or 1) // ranks - 1, 0)

    def fingerprints(self, some: range | None = None) -> list[str]:
        """SHA-256 of each picture's content, or of some: of a file its bytes, else its numbers."""
        return [self._fingerprint(i) for i in (range(len(self)) if some is None else some)]

    def _fingerprint(self, i: int) -> str:
        item = self._item(i)
        if isinstance(item, (str, Path)):
            try:
                content = Path(item).read_bytes()
            except OSError as error:
                content = str(error.errno).encode()
            return hashlib.sha256(content).hexdigest()
        array = np.ascontiguousarray(item.cpu() if isinstance(item, Tensor) else item)
        found = hashlib.sha256(f"{array.shape}{array.dtype}".encode())
        found.update(array.data)
        return found.hexdigest()

    def _item(self, i: int) -> Any:
        item = self.source[i]
        return item[0] if isinstance(item, (tuple, list)) else item

    def __repr__(self) -> str:
        return f"Pictures({len(self)}, from {self.names[0]!r} to {self.names[-1]!r})"


def cut_into_batches(pictures: range, batch_size: int) -> list[range]:
    """Consecutive batches of the pictures, the last one smaller."""
    return [pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size)]


def warn_of_left_out(errors: Sequence[str]) -> None:
    """Say which pictures could not be read, if any."""
    if errors:
        warnings.warn(f"{len(errors)} pictures left out: {'; '.join(errors)}", stacklevel=3)


class _Batches(Dataset[Any]):
    """Batches as `Pictures.read` yields them, or the error that it is to raise."""

    def __init__(self, pictures: Pictures, batches: Sequence[range]) -> None:
        self.pictures, self.batches = pictures, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: int) -> tuple[list[int], Tensor, list[str]] | ValueError:
        try:
            return self._read(self.batches[k])
        except ValueError as error:  # raised in a worker it would come with that one's traceback
            return error

    def _read(self, batch: range) -> tuple[list[int], Tensor, list[str]]:
        good: list[tuple[int, Tensor]] = []
        errors: list[str] = []
        for i in batch:
            try:
                good.append((i, self.pictures[i]))
            except UnreadableImageError as error:
                errors.append(str(error))
        return [i for i, _ in good], self._stack(good) if good else torch.empty(0), errors

    def _stack(self, good: list[tuple[int, Tensor]]) -> Tensor:
        names, first = self.pictures.names, good[0][1].shape
        for i, x in good:
            if x.shape != first:
                raise ValueError(
                    f"{names[i]} has shape {tuple(x.shape)}, {names[good[0][0]]} has "
                    f"{tuple(first)}: give a transform that resizes to one size"
                )
        return torch.stack([x for _, x in good])


def transform_fingerprint(transform: Transform | None) -> str:
    """SHA-256 of what the transform makes of a fixed picture, so that any callable has one.

    Raises
    ------
    ValueError
        If it makes two different things of it: a random transform has no fixed activations.
    """
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    first, second = ((transform or _to_unit)(picture) for _ in range(2))
    if not torch.equal(first, second):
        raise ValueError("the transform is random: give one that treats a picture always alike")
    return hashlib.sha256(f"{tuple(first.shape)}".encode() + first.numpy().tobytes()).hexdigest()


def denormalise(x: Tensor, transform: Transform | None) -> Tensor:
    """Turn network inputs ``(B, 3, H, W)`` back into pictures, uint8 of the same shape.

    Undoes the normalisation found in the transform (``mean`` and ``std`` on it or on one of its
    ``transforms``); values that are no pixels even so are stretched picture by picture.
    """
    for part in (transform, *getattr(transform, "transforms", ())):
        if hasattr(part, "mean") and hasattr(part, "std"):
            mean, std = (torch.as_tensor(s).to(x).view(1, -1, 1, 1) for s in (part.mean, part.std))
            x = x * std + mean
            break
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    outside = (low < -0.01) | (high > 1.01)
    x = torch.where(outside, (x - low) / (high - low).clamp(min=1e-12), x)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def crop_boxes(size: tuple[int, int], patch_size: int, stride: int | None = None) -> Tensor:
    """Lay square crops on a regular grid that reaches every border.

    Parameters
    ----------
    size : tuple of int
        (H, W) of the pictures.
    patch_size, stride : int
        In pixels; stride defaults to 0.8 × `patch_size`.

    Returns
    -------
    Tensor
        ``(m, 4)``: left, top, right, bottom, row by row.
    """
    height, width = size
    _check_patch_size(size, patch_size)
    stride = max(1, int(0.8 * patch_size)) if stride is None else stride
    return torch.tensor(
        [
            (left, top, left + patch_size, top + patch_size)
            for top in _starts(height, patch_size, stride)
            for left in _starts(width, patch_size, stride)
        ]
    )


def position_boxes(size: tuple[int, int], grid: tuple[int, int], patch_size: int) -> Tensor:
    """Lay a square around each position of a grid, moved to lie inside the picture.

    Parameters
    ----------
    size, grid : tuple of int
        (H, W) of the pictures and (h, w) of the positions that cover them.
    patch_size : int
        In pixels.

    Returns
    -------
    Tensor
        ``(h·w, 4)``: left, top, right, bottom, row by row.
    """
    _check_patch_size(size, patch_size)
    tops, lefts = (
        ((torch.arange(n) + 0.5) * length / n - patch_size / 2)
        .round()
        .long()
        .clamp(0, length - patch_size)
        for length, n in zip(size, grid, strict=True)
    )
    corner = torch.cartesian_prod(tops, lefts).flip(1)
    return torch.cat([corner, corner + patch_size], 1)


def cut(x: Tensor, boxes: Tensor) -> Tensor:
    """Cut crops of one size out of each picture: ``(B, 3, H, W)`` → ``(B, m, 3, h, w)``."""
    return torch.stack(
        [x[:, :, top:bottom, left:right] for left, top, right, bottom in boxes.tolist()], dim=1
    )


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize pictures ``(B, 3, h, w)`` to ``size``, bilinearly."""
    return torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)


def _check_patch_size(size: tuple[int, int], patch_size: int) -> None:
    if not 1 <= patch_size <= min(size):
        raise ValueError(
            f"patch_size={patch_size} for pictures of {size[0]}×{size[1]}: it must be between 1 "
            f"and {min(size)}"
        )


def _starts(length: int, patch: int, stride: int) -> list[int]:
    starts = list(range(0, length - patch + 1, stride))
    return starts if starts[-1] == length - patch else [*starts, length - patch]


def _files_below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder of pictures")
    files: Iterable[Path] = folder.rglob("*")
    found = sorted(path for path in files if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not found:
        raise ValueError(
            f"the folder {str(folder)!r} is empty of pictures (looked for {', '.join(EXTENSIONS)})"
        )
    return found


def _is_sized(images: Any) -> bool:
    """Whether these are items with numbers, how many of them being known."""
    if isinstance(images, Tensor) and images.ndim != 4:
        raise ValueError(f"images must be a tensor (n, 3, H, W), got {tuple(images.shape)}")
    has_items = hasattr(images, "__getitem__") and hasattr(images, "__len__")
    return has_items and not isinstance(images, Mapping)


def _array(item: Any) -> np.ndarray:
    """An array ``(H, W)`` or ``(H, W, bands)`` of bytes, from an array or a tensor of bytes."""
    if isinstance(item, Tensor) and item.ndim == 3:
        item = item.movedim(0, -1)
    array = np.asarray(item)
    if array.dtype not in (np.uint8, np.uint16) and array.dtype.kind != "f":
        raise TypeError(
            f"a picture must hold uint8, uint16 or floats from 0 to 1, got {array.dtype}: convert "
            "it with .astype(np.uint8)"
        )
    if array.dtype.kind == "f":
        array = (array * 255).round().clip(0, 255)
    elif array.dtype == np.uint16:
        array = array // 257
    return np.ascontiguousarray(array, dtype=np.uint8)


def to_bytes(picture: Image.Image) -> Tensor:
    """An RGB picture as uint8 tensor ``(3, H, W)``."""
    return torch.from_numpy(np.array(picture)).movedim(-1, 0)


def _to_unit(picture: Image.Image) -> Tensor:
    return to_bytes(picture).float() / 255
