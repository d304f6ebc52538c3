"""transformers loads compressed folders once this is imported: `import lrzip.hf`, then `from_pretrained` as ever."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import safe_open
from torch import Tensor, nn

from lrzip.core.errors import LrzipError
from lrzip.core.kinds import LINEAR, LINEAR_TRANSPOSED, Kind
from lrzip.formats.safetensors.huggingface import FORMAT_VERSION, METHOD, read_ranks
from lrzip.networks.architecture import module_info

try:
    from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise ImportError("lrzip.hf needs transformers 4.50 or later: pip install 'lrzip-nn[hf]'") from error


_WHERE = "`quantization_config` in config.json"
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class LowRankLinear(nn.Module):
    """A linear layer of rank r: y = W (W_in x) + b, with `weight_in` (r, in), `weight` (out, r) and `bias` (out,)."""

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, rank: int, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight_in = nn.Parameter(torch.empty(rank, in_features, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(out_features, rank, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, dtype=dtype)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        return F.linear(F.linear(x, self.weight_in), self.weight, self.bias)

    def extra_repr(self) -> str:
        """Say what printing a model shows of it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class LowRankConv(nn.Module):
    """A convolution of rank r: one to r channels a group with all attributes of the layer, and a pointwise one.

    `weight_in` is (groups · r, in / groups, *kernel), `weight` (out, r, 1, …), `bias` (out,).
    """

    bias: nn.Parameter | None

    def __init__(self, layer: Any, kind: Kind, rank: int) -> None:
        super().__init__()
        self.convolve = _CONVOLUTIONS[kind.spatial]
        self.stride, self.padding, self.dilation = layer.stride, layer.padding, layer.dilation
        self.groups, self.rank = layer.groups, rank
        out, *inner = layer.weight.shape
        points = (1,) * len(layer.kernel_size)
        self.weight_in = nn.Parameter(torch.empty(layer.groups * rank, *inner, dtype=layer.weight.dtype))
        self.weight = nn.Parameter(torch.empty(out, rank, *points, dtype=layer.weight.dtype))
        bias = None if layer.bias is None else nn.Parameter(torch.empty(out, dtype=layer.weight.dtype))
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the layer did."""
        inner = self.convolve(x, self.weight_in, None, self.stride, self.padding, self.dilation, self.groups)
        return self.convolve(inner, self.weight, self.bias, groups=self.groups)

    def extra_repr(self) -> str:
        """Say what printing a model shows of it."""
        return f"{tuple(self.weight_in.shape)}, {tuple(self.weight.shape)}, rank={self.rank}, groups={self.groups}"


@register_quantization_config(METHOD)
class LrzipConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not followed
    """The `quantization_config` of compressed folders.

    Raises:
        LrzipError: It is malformed, or a later lrzip wrote it.
    """

    def __init__(
        self, ranks: Mapping[str, int] | None = None, format_version: int = FORMAT_VERSION, **others: Any
    ) -> None:
        self.__dict__ |= others  # what is not known here is carried along
        self.quant_method = METHOD
        self.format_version = format_version
        self.ranks = read_ranks({"format_version": format_version, "ranks": ranks}, _WHERE)


@register_quantizer(METHOD)
class LrzipQuantizer(HfQuantizer):  # type: ignore[misc]  # transformers is not followed
    """Puts modules of low rank into a model before transformers loads its weights."""

    requires_calibration = True  # so that transformers offers it for compressed folders alone
    is_trainable = True
    is_qat_trainable = True
    is_compileable = True

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Allow `save_pretrained`."""
        return True

    def _process_model_before_weight_loading(self, model: nn.Module, **given: Any) -> None:
        ranks: Mapping[str, int] = self.quantization_config.ranks
        _check_files(given.get("checkpoint_files") or (), ranks)
        found = _found(model, ranks)
        with torch.device("meta"):
            replacements = {path: _low_rank(path, model.get_submodule(path), ranks[n]) for n, path in found.items()}
        for path, module in replacements.items():
            model.set_submodule(path, module)
        saved = {name: _saved_name(name, path) for name, path in found.items()}
        self.quantization_config.ranks = {saved[name]: ranks[name] for name in found}
        transposed = getattr(self.quantization_config, "transposed", ())
        if transposed:
            self.quantization_config.transposed = [saved[name] for name in transposed if name in saved]

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """Refuse files without factors in transformers 4, which does not say beforehand which files it reads."""
        del prefix
        low_rank = [path for path, module in model.named_modules() if isinstance(module, LowRankLinear | LowRankConv)]
        lost = next((key for key in missing_keys if key.rpartition(".")[0] in low_rank), None)
        if lost is not None:
            raise LrzipError(f"The files have no `{lost}`, which {_WHERE} promises. Fetch the folder again.")
        return missing_keys

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        model.is_quantized = False  # its weights are ordinary ones: it can be cast and trained
        model.config.quantization_config = self.quantization_config  # which transformers 4 has copied before
        return model


def _check_files(files: Sequence[str], ranks: Mapping[str, int]) -> None:
    """Refuse files without the factors that the ranks promise, which transformers would leave at random values."""
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


def _found(model: Any, ranks: Mapping[str, int]) -> dict[str, str]:
    """Return the paths of factorized layers in a model, by their names in the folder.

    Raises:
        LrzipError: The model, of the class that the folder is of, lacks one. Another class, with another head or
            none, has what it has; transformers reports the tensors that are left over.
    """
    resolve = _resolver(model)
    modules = dict(model.named_modules())
    paths = {name: resolve(name) for name in ranks}
    found = {name: path for name, path in paths.items() if path in modules}
    lost = next((name for name in ranks if name not in found), None)
    if lost is not None and (not found or type(model).__name__ in (model.config.architectures or ())):
        raise LrzipError(
            f"{_WHERE} names `{lost}`, which {type(model).__name__} does not have. Compress again with `--skip {lost}`."
        )
    return found


def _resolver(model: Any) -> Callable[[str], str]:
    """Return how transformers translates names in a folder to those in the model."""
    state = model.state_dict()
    prefix: str = model.base_model_prefix
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # before transformers 5, names differ by the prefix of the base model alone

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
                f"transformers joins `{key}` with other weights, which factors do not allow. "
                f"Compress again with `--skip {name}`."
            )
        return str(renamed).removesuffix(".weight")

    return resolve


def _saved_name(name: str, path: str) -> str:
    """Return the name that `save_pretrained` will use: with the model's prefix, all else as it was."""
    return path if f".{path}".endswith(f".{name}") or f".{name}".endswith(f".{path}") else name


def _low_rank(path: str, layer: Any, rank: int) -> nn.Module:
    """Return a module of low rank in the place of a layer, without values.

    Raises:
        LrzipError: The layer is of a kind that has none.
    """
    what = module_info(layer)
    if what.kind and what.kind.is_plain_convolution and not what.reason and layer.padding_mode == "zeros":
        return LowRankConv(layer, what.kind, rank)
    if what.kind not in (LINEAR, LINEAR_TRANSPOSED) or what.reason:
        reason = what.reason or f"{type(layer).__name__}, for which there is no module of low rank"
        raise LrzipError(f"`{path}` is {reason}. Compress again with `--skip {path}`.")
    out, inner = what.kind.channels(layer.weight.shape)
    return LowRankLinear(inner, out, rank, bias=layer.bias is not None, dtype=layer.weight.dtype)
