"""Describe a live network: the layers that can be factorized, and the names and shapes of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lrzip.core.kinds import (
    ATTENTION,
    CONVOLUTIONS,
    EMBEDDING,
    LINEAR,
    LINEAR_TRANSPOSED,
    TRANSPOSED_CONVOLUTIONS,
    Kind,
)
from lrzip.core.stored import DenseLayer
from lrzip.networks.naming import Naming
from lrzip.networks.state import tensors_of
from lrzip.networks.subclasses import computes_linear
from lrzip.networks.transformers_names import naming_of

_KINDS: Mapping[type[nn.Module], Kind] = {
    nn.Linear: LINEAR,
    nn.Embedding: EMBEDDING,
    nn.Conv1d: CONVOLUTIONS[1],
    nn.Conv2d: CONVOLUTIONS[2],
    nn.Conv3d: CONVOLUTIONS[3],
    nn.ConvTranspose1d: TRANSPOSED_CONVOLUTIONS[1],
    nn.ConvTranspose2d: TRANSPOSED_CONVOLUTIONS[2],
    nn.ConvTranspose3d: TRANSPOSED_CONVOLUTIONS[3],
}
_HOOKED = "it carries forward hooks, which would be lost"


@dataclass(frozen=True)
class ModuleInfo:
    """Description of a module with a weight.

    Attributes:
        kind: Kind of the layer; None if the module is not a layer that can be factorized.
        groups: Number of groups of a convolution.
        reason: Reason why the module cannot be replaced, or None.
    """

    kind: Kind | None
    groups: int = 1
    reason: str | None = None


def module_info(module: nn.Module) -> ModuleInfo:
    """Describe a module by its class and attributes.

    A subclass has the kind of its parent class if it does not override `forward`, or if its `forward` computes the same
    as that of nn.Linear.
    """
    kind = _kind(module)
    if kind is None:
        return ModuleInfo(None, reason=f"the weight of {type(module).__name__}, which has no factors here")
    groups = getattr(module, "groups", 1)
    return ModuleInfo(kind, groups if isinstance(groups, int) else 1, _obstacle(module))


def _projections(module: nn.MultiheadAttention) -> ModuleInfo:
    """Describe the input projections of an attention module."""
    reason = None
    if type(module).forward is not nn.MultiheadAttention.forward:
        reason = f"the input projection of {type(module).__name__}"
    elif "in_proj_weight" not in module._parameters or module.in_proj_weight is None:
        reason = "attention whose query, key and value differ in width"
    elif module.bias_k is not None or module.add_zero_attn:
        reason = "attention with further keys of its own (add_bias_kv or add_zero_attn)"
    elif module._forward_hooks or module._forward_pre_hooks:
        reason = _HOOKED
    return ModuleInfo(ATTENTION, ATTENTION.groups, reason)


def _kind(module: nn.Module) -> Kind | None:
    for parent, kind in _KINDS.items():
        if isinstance(module, parent):
            inherits = type(module).forward is parent.forward
            return kind if inherits or (isinstance(module, nn.Linear) and computes_linear(module)) else None
    # The weight of transformers' Conv1D is stored (in, out).
    transposed = type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"
    return LINEAR_TRANSPOSED if transposed else None


def _obstacle(module: nn.Module) -> str | None:
    if "weight" not in module._parameters:
        return "its weight is computed from other tensors (weight norm or another parametrization)"
    if module._forward_hooks or module._forward_pre_hooks:
        return _HOOKED
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "read directly by nn.MultiheadAttention"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "an embedding whose rows are renormalized (max_norm)"
    if getattr(module, "groups", 1) == getattr(module, "in_channels", 0) > 1:
        return "depthwise: nothing to share between channels"
    return None


@dataclass(frozen=True)
class Architecture:
    """Description of a network, by which the tensors of its checkpoints are recognized.

    Attributes:
        layers: Descriptions of the modules with a weight, by path; `x.in_proj` denotes the input projections of an
            nn.MultiheadAttention `x`.
        classes: Names of the classes of all modules, by path.
        shapes: Shapes of all tensors of the state_dict, by name.
        shared: For each tensor that has several names, another one of its names.
        naming: Rules by which files name its tensors, if they differ from its own names.
    """

    layers: Mapping[str, ModuleInfo]
    classes: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    shared: Mapping[str, str]
    naming: Naming | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "Architecture":
        """Describe a live network, regardless of the values of its weights."""
        modules = dict(model.named_modules(remove_duplicate=False))
        attentions = {name: module for name, module in modules.items() if isinstance(module, nn.MultiheadAttention)}
        state = tensors_of(model, keep_vars=True)
        users: dict[int, list[str]] = {}
        for name, tensor in state.items():
            users.setdefault(id(tensor), []).append(name)
        return cls(
            {name: module_info(module) for name, module in modules.items() if has_weight(module)}
            | {f"{name}.in_proj".removeprefix("."): _projections(module) for name, module in attentions.items()},
            {name: type(module).__name__ for name, module in modules.items()},
            {name: tuple(tensor.shape) for name, tensor in state.items()},
            {name: next(o for o in names if o != name) for names in users.values() if len(names) > 1 for name in names},
            naming_of(model),
        )

    @property
    def dense_layers(self) -> Mapping[str, DenseLayer]:
        """Layers that stored structures may replace, by the path of their module."""
        return {name: self._dense(name, info) for name, info in self.layers.items() if name and info.kind}

    def may_lack(self, name: str) -> bool:
        """Return whether files may lack a tensor, which then keeps the value that the network is built with."""
        return self.naming is not None and self.naming.may_lack(name)

    def _dense(self, name: str, info: ModuleInfo) -> DenseLayer:
        assert info.kind
        return DenseLayer(info.kind, self.shapes.get(info.kind.tensor_name(name, "weight")), info.groups)


def has_weight(module: nn.Module) -> bool:
    """Return whether a module has a tensor called `weight`."""
    return isinstance(getattr(module, "weight", None), Tensor)
