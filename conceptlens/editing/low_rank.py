"""`LowRank`: the edit that all erasures are."""

# No postponed annotations: TorchScript reads those of a class as they are.
from torch import Tensor, nn


class LowRank(nn.Module):
    """Edits activations ``(..., C)`` by a − (a − centre) readers directions.

    Parameters
    ----------
    readers : Tensor
        ``(C, r)``.
    directions : Tensor
        ``(r, C)``.
    centre : Tensor
        ``(C,)``: the activation that is left as it is.
    """

    readers: Tensor
    directions: Tensor
    centre: Tensor

    def __init__(self, readers: Tensor, directions: Tensor, centre: Tensor) -> None:
        super().__init__()
        self.register_buffer("readers", readers)
        self.register_buffer("directions", directions)
        self.register_buffer("centre", centre)

    def forward(self, a: Tensor) -> Tensor:
        """Edit ``(..., C)``."""
        return a - (a - self.centre) @ self.readers @ self.directions

    def extra_repr(self) -> str:
        """Describe the sizes."""
        return f"C={self.readers.shape[0]}, rank={self.readers.shape[1]}"
