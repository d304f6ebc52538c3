"""Low-rank modules that take the place of layers in models of transformers."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.core.kinds import LINEAR, LINEAR_TRANSPOSED, Kind
from lrzip.core.merge import merge
from lrzip.core.structure import Chain, Stage
from lrzip.networks.architecture import ModuleInfo, module_info

_CONVOLUTIONS: Mapping[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class LowRank(nn.Sequential):
    """Two layers in the place of one: `self[0]` maps to the rank, `self[1]` to the outputs, with the bias.

    Both are ordinary modules of PyTorch, which adapters and quantizers find. In state dictionaries they have the names
    under which folders store them: `weight_in`, `weight` and `bias`; both names are accepted when one is loaded.

    Args:
        first: Layer to `rank` channels, without a bias.
        second: Layer from `rank` channels.
        replaced: The dense layer, without data.
    """

    STORED: ClassVar[Mapping[str, tuple[int, str]]] = {
        "weight_in": (0, "weight"),
        "weight": (1, "weight"),
        "bias": (1, "bias"),
    }
    """Position and name of each parameter in the two layers, by its stored name."""

    def __init__(self, first: Any, second: Any, replaced: nn.Module) -> None:
        super().__init__(first, second)
        self._replaced = (_without_data(replaced),)  # in a tuple, so that it is no submodule
        for layer in (first, second):
            layer._is_hf_initialized = True  # transformers 4 compares stored names with those of the inner layers
        self.register_state_dict_post_hook(_present_stored)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_accept_stored)  # type: ignore[no-untyped-call]

    @property
    def weight_in(self) -> Any:
        """Weight of the first layer."""
        return self[0].weight

    @property
    def weight(self) -> Any:
        """Weight of the second layer."""
        return self[1].weight

    @property
    def bias(self) -> Any:
        """Bias of the second layer, or None."""
        return self[1].bias

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.STORED:
            super().__setattr__(name, value)
            return
        index, leaf = self.STORED[name]
        if getattr(self[index], leaf) is not value:  # an adapter around a layer only presents its parameters
            setattr(self[index], leaf, value)

    @torch.no_grad()
    def dense(self) -> nn.Module:
        """Return the layer that was replaced, with the product of both weights and with the bias.

        Raises:
            LrzipError: Another library has replaced one of the two layers.
        """
        first, second = self
        for layer in (first, second):
            if module_info(layer).kind is None:
                raise LrzipError(f"{type(layer).__name__} inside {type(self).__name__} has no plain weight to merge.")
        layer, info = copy.deepcopy(self._replaced[0]), module_info(self._replaced[0])
        assert info.kind, "only layers of a known kind are replaced"
        replaced = _stage(layer, info, info.kind)
        narrow = replaced.kind if replaced.kind.spatial else LINEAR
        weights = [part.get_parameter("weight").detach().cpu() for part in (first, second)]
        axes = ((True,) * narrow.spatial, (False,) * narrow.spatial)
        stages = [Stage(narrow, tuple(w.shape), info.groups, along) for w, along in zip(weights, axes, strict=True)]
        product = merge(Chain(tuple(stages)), weights, replaced)
        like = second.get_parameter("weight")
        layer.weight = nn.Parameter(product.contiguous().to(like.device, like.dtype), like.requires_grad)
        layer.bias = self[1].bias
        return layer.train(self.training)


class LowRankLinear(LowRank):
    """Linear layer of low rank: y = W (W_in x) + b.

    Args:
        layer: nn.Linear, or Conv1D of transformers, to replace.
        kind: Kind of the layer.
        rank: Rank of the weight.
    """

    def __init__(self, layer: Any, kind: Kind, rank: int) -> None:
        outputs, inputs = kind.channels(layer.weight.shape)
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        first = nn.Linear(inputs, rank, bias=False, **like)
        super().__init__(first, nn.Linear(rank, outputs, bias=layer.bias is not None, **like), layer)
        self.in_features, self.out_features, self.rank = inputs, outputs, rank

    def extra_repr(self) -> str:
        """Describe the module for `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class LowRankConv(LowRank):
    """Convolution of low rank: one to `rank` channels per group with the layer's attributes, then a pointwise one.

    Args:
        layer: Convolution to replace, with zero padding.
        kind: Kind of the layer.
        rank: Rank of the weight of each group.
    """

    def __init__(self, layer: Any, kind: Kind, rank: int) -> None:
        make, inner = _CONVOLUTIONS[kind.spatial], layer.groups * rank
        like = {"groups": layer.groups, "device": layer.weight.device, "dtype": layer.weight.dtype}
        along = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
        first = make(layer.in_channels, inner, layer.kernel_size, bias=False, **along, **like)
        super().__init__(first, make(inner, layer.out_channels, 1, bias=layer.bias is not None, **like), layer)
        self.groups, self.rank = layer.groups, rank

    def extra_repr(self) -> str:
        """Describe the module for `print(model)`."""
        return f"rank={self.rank}, groups={self.groups}"


def low_rank(path: str, layer: Any, rank: int) -> LowRank:
    """Return an uninitialized low-rank module in the place of a layer.

    Raises:
        LrzipError: There is no low-rank module for this layer.
    """
    info = module_info(layer)
    if info.kind and info.kind.is_plain_convolution and not info.reason and layer.padding_mode == "zeros":
        return LowRankConv(layer, info.kind, rank)
    if info.kind not in (LINEAR, LINEAR_TRANSPOSED) or info.reason:
        reason = info.reason or f"{type(layer).__name__}, for which there is no low-rank module"
        raise LrzipError(f"`{path}` is {reason}. Compress again with `skip={path}`.")
    return LowRankLinear(layer, info.kind, rank)


def _without_data(layer: nn.Module) -> nn.Module:
    """Return a copy of a layer on the device `meta`."""
    found = copy.copy(layer)
    parameters = {n: None if p is None else nn.Parameter(p.detach().to("meta")) for n, p in layer._parameters.items()}
    found.__dict__["_parameters"] = parameters
    return found


def _stage(layer: Any, info: ModuleInfo, kind: Kind) -> Stage:
    return Stage(kind, tuple(layer.weight.shape), info.groups, (True,) * kind.spatial)


def _present_stored(module: LowRank, state: dict[str, Tensor], prefix: str, _metadata: object) -> None:
    """Rename the parameters of both layers in a state dictionary to their stored names."""
    for stored, (index, leaf) in module.STORED.items():
        name = f"{prefix}{index}.{leaf}"
        if name in state:
            state[f"{prefix}{stored}"] = state.pop(name)


def _accept_stored(module: LowRank, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Rename stored names in a state dictionary to those of the parameters of both layers."""
    for stored, (index, leaf) in module.STORED.items():
        if f"{prefix}{stored}" in state:
            state[f"{prefix}{index}.{leaf}"] = state.pop(f"{prefix}{stored}")
