"""Load compressed models of diffusers: `import lrzip.hf.diffusers`, then call `from_pretrained` as usual."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from lrzip.core.errors import LrzipError
from lrzip.formats.safetensors.config import FORMAT_VERSION, METHOD, read_ranks
from lrzip.hf.modules import LowRank, low_rank
from lrzip.hf.names import WHERE

try:
    from diffusers.quantizers import auto
    from diffusers.quantizers.base import DiffusersQuantizer
    from diffusers.quantizers.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise ImportError("lrzip.hf.diffusers needs diffusers 0.32 or later: pip install diffusers") from error


class _Method(StrEnum):
    lrzip = METHOD


class DiffusersConfig(QuantizationConfigMixin):  # type: ignore[misc]  # diffusers is not followed
    """The `quantization_config` of compressed models of diffusers.

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
        self.quant_method = _Method.lrzip
        self.format_version = format_version
        self.ranks = read_ranks({"format_version": format_version, "ranks": ranks}, WHERE)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return all entries, of which none has a default value."""
        return dict(self.to_dict())


class LowRankQuantizer(DiffusersQuantizer):  # type: ignore[misc]  # diffusers is not followed
    """Replaces factorized layers by low-rank modules before diffusers loads the weights."""

    requires_calibration = True  # so that diffusers accepts it for compressed folders only
    use_keep_in_fp32_modules = True
    is_serializable = True
    is_trainable = True
    is_compileable = True
    supports_safetensors_serialization = True

    def check_if_quantized_param(self, model: nn.Module, _value: object, name: str, *_: Any, **__: Any) -> bool:
        """Return whether a tensor belongs to a low-rank module, whose stored names diffusers cannot assign."""
        return isinstance(model.get_submodule(name.rpartition(".")[0]), LowRank)

    def check_quantized_param_shape(self, name: str, expected: torch.Tensor, value: torch.Tensor) -> bool:
        """Refuse a tensor of another shape than its module has."""
        if value.shape != expected.shape:
            raise LrzipError(
                f"`{name}` has shape {tuple(value.shape)}, and {WHERE} implies {tuple(expected.shape)}. "
                "Fetch or compress the folder again."
            )
        return True

    def create_quantized_param(
        self, model: nn.Module, value: torch.Tensor, name: str, device: torch.device, *args: Any, **kwargs: Any
    ) -> None:
        """Assign a tensor to a low-rank module."""
        del args, kwargs
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, nn.Parameter(value.to(device)))

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """Refuse files without factors."""
        del prefix
        lost = next((key for key in missing_keys if self.check_if_quantized_param(model, None, key)), None)
        if lost is not None:
            raise LrzipError(f"The files have no `{lost}`, which {WHERE} promises. Fetch the folder again.")
        return missing_keys

    def _process_model_before_weight_loading(self, model: nn.Module, **_: Any) -> None:
        modules = dict(model.named_modules())
        for path, rank in self.quantization_config.ranks.items():
            if path not in modules:
                raise LrzipError(
                    f"{WHERE} names `{path}`, which {type(model).__name__} does not have. Compress again with "
                    f"`skip={path}`."
                )
            with torch.device("meta"):
                model.set_submodule(path, low_rank(path, modules[path], rank))

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        model.is_quantized = False  # its weights are plain tensors, so the model can be cast and trained
        return model

    def _dequantize(self, model: Any) -> Any:
        for path, module in [(path, m) for path, m in model.named_modules() if isinstance(m, LowRank)]:
            model.set_submodule(path, module.dense())
        config = model._internal_dict  # frozen, and without a method that removes an entry
        model._internal_dict = type(config)({key: config[key] for key in config if key != "quantization_config"})
        return model


auto.AUTO_QUANTIZER_MAPPING[METHOD] = LowRankQuantizer
auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = DiffusersConfig
