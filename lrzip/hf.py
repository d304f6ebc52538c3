"""Load compressed folders with transformers: `import lrzip.hf`, then call `from_pretrained` as usual.

Importing this module registers a quantizer with transformers, which replaces the factorized layers of a model by
low-rank modules before the weights are loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import safe_open
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.core.kinds import LINEAR, LINEAR_TRANSPOSED, Kind
from lrzip.formats.safetensors.config import FORMAT_VERSION, METHOD, read_ranks
from lrzip.networks.architecture import module_info

try:
    from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise ImportError("lrzip.hf needs transformers 4.50 or later: pip install 'lrzip-nn[hf]'") from error


_WHERE = "`quantization_config` in config.json"
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class LowRankLinear(nn.Module):
    """Linear layer of low rank: y = W (W_in x) + b.

    Its parameters are `weight_in` (rank, in), `weight` (out, rank) and `bias` (out,).

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        rank: Rank of the weight.
        bias: Whether the layer has a bias.
        dtype: Dtype of the parameters.
    """

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, rank: int, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight_in = nn.Parameter(torch.empty(rank, in_features, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(out_features, rank, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, dtype=dtype)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (..., in) to outputs (..., out)."""
        return F.linear(F.linear(x, self.weight_in), self.weight, self.bias)

    def extra_repr(self) -> str:
        """Describe the module for `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class LowRankConv(nn.Module):
    """Convolution of low rank: one to `rank` channels per group with the layer's attributes, then a pointwise one.

    Parameters are `weight_in` (groups · rank, in / groups, *kernel), `weight` (out, rank, 1, ...) and `bias` (out,).

    Args:
        layer: Convolution to replace, with zero padding.
        kind: Kind of the layer.
        rank: Rank of the weight of each group.
    """

    bias: nn.Parameter | None

    def __init__(self, layer: Any, kind: Kind, rank: int) -> None:
        super().__init__()
        self.convolve = _CONVOLUTIONS[kind.spatial]
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation
        self.groups, self.rank = layer.groups, rank
        out, *inner = layer.weight.shape
        ones = (1,) * len(layer.kernel_size)
        self.weight_in = nn.Parameter(torch.empty(layer.groups * rank, *inner, dtype=layer.weight.dtype))
        self.weight = nn.Parameter(torch.empty(out, rank, *ones, dtype=layer.weight.dtype))
        bias = None if layer.bias is None else nn.Parameter(torch.empty(out, dtype=layer.weight.dtype))
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve inputs (batch, in, *sizes), as the layer with the product of both weights does."""
        inner = self.convolve(x, self.weight_in, None, self.stride, self.padding, self.dilation, self.groups)
        return self.convolve(inner, self.weight, self.bias, groups=self.groups)

    def extra_repr(self) -> str:
        """Describe the module for `print(model)`."""
        return f"{tuple(self.weight_in.shape)}, {tuple(self.weight.shape)}, rank={self.rank}, groups={self.groups}"


@register_quantization_config(METHOD)
class LrzipConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not followed
    """The `quantization_config` of compressed folders.

    Args:
        ranks: Rank of each factorized layer, by module.
        format_version: Version of this configuration.
        others: Further entries, which are preserved.

    Raises:
        LrzipError: The configuration is malformed, or was written by a later version of lrzip.
    """

    def __init__(
        self, ranks: Mapping[str, int] | None = None, format_version: int = FORMAT_VERSION, **others: Any
    ) -> None:
        self.__dict__ |= others
        self.quant_method = METHOD
        self.format_version = format_version
        self.ranks = read_ranks({"format_version": format_version, "ranks": ranks}, _WHERE)


@register_quantizer(METHOD)
class LrzipQuantizer(HfQuantizer):  # type: ignore[misc]  # transformers is not followed
    """Replaces factorized layers by low-rank modules before transformers loads the weights."""

    requires_calibration = True  # so that transformers accepts it for compressed folders only
    is_trainable = True
    is_qat_trainable = True
    is_compileable = True

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Return True: `save_pretrained` is supported."""
        return True

    def _process_model_before_weight_loading(self, model: nn.Module, **given: Any) -> None:
        ranks: Mapping[str, int] = self.quantization_config.ranks
        _check_files(given.get("checkpoint_files") or (), ranks)
        paths = _paths(model, ranks)
        with torch.device("meta"):
            replacements = {path: _low_rank(path, model.get_submodule(path), ranks[n]) for n, path in paths.items()}
        for path, module in replacements.items():
            model.set_submodule(path, module)
        saved = {name: _saved_name(name, path) for name, path in paths.items()}
        self.quantization_config.ranks = {saved[name]: ranks[name] for name in paths}
        transposed = getattr(self.quantization_config, "transposed", ())
        if transposed:
            self.quantization_config.transposed = [saved[name] for name in transposed if name in saved]

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """Refuse files without factors.

        transformers 4 does not name the files before it reads them, so that only this check applies there.
        """
        del prefix
        low_rank = [path for path, module in model.named_modules() if isinstance(module, LowRankLinear | LowRankConv)]
        lost = next((key for key in missing_keys if key.rpartition(".")[0] in low_rank), None)
        if lost is not None:
            raise LrzipError(f"The files have no `{lost}`, which {_WHERE} promises. Fetch the folder again.")
        return missing_keys

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        model.is_quantized = False  # its weights are plain tensors, so the model can be cast and trained
        model.config.quantization_config = self.quantization_config  # transformers 4 copied it before its names changed
        return model


def _check_files(files: Sequence[str], ranks: Mapping[str, int]) -> None:
    """Refuse files without the factors of a layer, which transformers would leave at random values."""
    shapes: dict[str, Sequence[int]] = {}
    for file in files:
        if str(file).endswith(".safetensors"):
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    for name, rank in ranks.items():
        stored = [list(shapes.get(f"{name}.{suffix}", ())) for suffix in ("weight_in", "weight")]
        if shapes and (not all(stored) or stored[0][0] % rank or stored[1][1:2] != [rank]):
            raise LrzipError(
                f"{_WHERE} gives `{name}` rank {rank}, which its tensors do not have: "
                f"weight_in {stored[0]}, weight {stored[1]}. Fetch or compress the folder again."
            )


def _paths(model: Any, ranks: Mapping[str, int]) -> dict[str, str]:
    """Return the paths of the factorized layers in a model, by their names in the folder.

    A model of another class, with another head or none, may lack layers; transformers reports their tensors as unused.

    Raises:
        LrzipError: A layer is missing in a model of the class that was saved, or no layer is found at all.
    """
    resolve = _resolver(model)
    modules = dict(model.named_modules())
    paths = {name: resolve(name) for name in ranks}
    found = {name: path for name, path in paths.items() if path in modules}
    lost = next((name for name in ranks if name not in found), None)
    if lost is not None and (not found or type(model).__name__ in (model.config.architectures or ())):
        raise LrzipError(
            f"{_WHERE} names `{lost}`, which {type(model).__name__} does not have. Compress again with `skip={lost}`."
        )
    return found


def _resolver(model: Any) -> Callable[[str], str]:
    """Return a function that translates the names of a folder to those of the model, as transformers does."""
    state = model.state_dict()
    prefix: str = model.base_model_prefix
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # before transformers 5, names differ only by the prefix of the base model

        def by_prefix(name: str) -> str:
            candidates = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
            return next((path for path in candidates if f"{path}.weight" in state), name)

        return by_prefix
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]

    def resolve(name: str) -> str:
        key = f"{name}.weight"
        renamed, joined = rename_source_key(key, renamings, converters, prefix, state)
        if renamed not in state:
            renamed, joined = rename_source_key(key, [], [], prefix, state)
        if joined:
            raise LrzipError(
                f"transformers merges `{key}` with other weights, which is impossible with factors. "
                f"Compress again with `skip={name}`."
            )
        return str(renamed).removesuffix(".weight")

    return resolve


def _saved_name(name: str, path: str) -> str:
    """Return the name that `save_pretrained` uses for a layer, which may have the prefix of the base model."""
    return path if f".{path}".endswith(f".{name}") or f".{name}".endswith(f".{path}") else name


def _low_rank(path: str, layer: Any, rank: int) -> nn.Module:
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
    out, inner = info.kind.channels(layer.weight.shape)
    return LowRankLinear(inner, out, rank, bias=layer.bias is not None, dtype=layer.weight.dtype)
