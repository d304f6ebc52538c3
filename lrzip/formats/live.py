"""Live networks as sources of tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from lrzip.core.layers import Keep, Layer, TensorSpec
from lrzip.networks.architecture import Architecture
from lrzip.networks.recognition import find_layers
from lrzip.networks.state import copy_of, tensors_of


class LiveSource:
    """The tensors and the architecture of a live network.

    Args:
        model: The network.
        untouchable: Tensors that must not be replaced, with the reason.
    """

    path = Path("the network")

    def __init__(self, model: nn.Module, untouchable: Mapping[str, str] | None = None) -> None:
        self._model = model
        self._untouchable = untouchable
        self._state = tensors_of(model)

    def tensors(self) -> Mapping[str, TensorSpec]:
        """Return all tensors of its state_dict."""
        return {
            name: TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.nbytes)
            for name, tensor in self._state.items()
        }

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return the layers that can be factorized, and the tensors that are kept with the reason.

        The architecture is that of the network itself unless another one is given.
        """
        known = architecture or Architecture.of(self._model)
        return find_layers(self.path, self.tensors(), known, untouchable=self._untouchable, kinds={})

    def read(self, name: str) -> Tensor:
        """Return one tensor, which shares its memory with the network."""
        return self._state[name]

    def network(self) -> nn.Module:
        """Return a copy of the network."""
        return copy_of(self._model)
