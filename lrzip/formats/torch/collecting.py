"""A writer for formats that are saved in one call, once all tensors are known."""

from torch import Tensor


class CollectingWriter:
    """Collects computed tensors in memory.

    Attributes:
        tensors: Computed tensors by name.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        """Add one computed tensor."""
        self.tensors[name] = tensor
