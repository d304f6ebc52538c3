"""The quantizer that transformers calls for compressed folders."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lrzip.core.errors import LrzipError
from lrzip.formats.safetensors.config import FORMAT_VERSION, METHOD, read_ranks
from lrzip.hf.adapters import register_with_peft
from lrzip.hf.modules import LowRank, low_rank
from lrzip.hf.names import WHERE, missing_weights, paths_of
from lrzip.networks.transformers_names import TransformersNaming


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
        self.ranks = read_ranks({"format_version": format_version, "ranks": ranks}, WHERE)


@register_quantizer(METHOD)
class LrzipQuantizer(HfQuantizer):  # type: ignore[misc]  # transformers is not followed
    """Replaces factorized layers by low-rank modules before transformers loads the weights."""

    requires_calibration = True  # so that transformers accepts it for compressed folders only
    is_trainable = True
    is_qat_trainable = True
    is_compileable = True
    _unused: str | None = None
    _paths: Mapping[str, str] = MappingProxyType({})

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Return True: `save_pretrained` is supported."""
        return True

    def _process_model_before_weight_loading(self, model: nn.Module, **given: Any) -> None:
        ranks: Mapping[str, int] = self.quantization_config.ranks
        shapes = _stored_shapes(given.get("checkpoint_files") or ())
        _check_ranks(shapes, ranks)
        paths = paths_of(model, ranks)
        self._unused = next((name for name in ranks if name not in paths), None)
        if shapes:
            self._check_unused(model, missing_weights(model, shapes))
        with torch.device("meta"):
            replacements = {path: low_rank(path, model.get_submodule(path), ranks[n]) for n, path in paths.items()}
        for path, module in replacements.items():
            model.set_submodule(path, module)
        self._paths = paths

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """Refuse files without factors.

        transformers 4 does not name the files before it reads them, so that only this check applies there.
        """
        del prefix
        low_rank = [path for path, module in model.named_modules() if isinstance(module, LowRank)]
        lost = next((key for key in missing_keys if key.rpartition(".")[0] in low_rank), None)
        if lost is not None:
            raise LrzipError(f"The files have no `{lost}`, which {WHERE} promises. Fetch the folder again.")
        self._check_unused(model, [key for key in missing_keys if key.endswith(".weight")])
        return missing_keys

    def _check_unused(self, model: Any, missing: Sequence[str]) -> None:
        """Refuse a factorized layer that the model lacks if weights of the model are missing in turn.

        A model may ignore layers of its files, such as a pooler, whether they are dense or not. A model of another
        class may also have weights that its files lack.
        """
        if self._unused is None or not missing or type(model).__name__ not in (model.config.architectures or ()):
            return
        raise LrzipError(
            f"{WHERE} names `{self._unused}`, which {type(model).__name__} does not have, while no file has its "
            f"`{missing[0]}`. Compress again with `skip={self._unused}`."
        )

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        self._rename_layers(model)
        model.is_quantized = False  # its weights are plain tensors, so the model can be cast and trained
        model.config.quantization_config = self.quantization_config  # transformers 4 copied it before its names changed
        register_with_peft()
        return model

    def _rename_layers(self, model: Any) -> None:
        """Name the layers in the configuration as `save_pretrained` will, which depends on what was loaded."""
        naming, config = TransformersNaming(model), self.quantization_config
        saved = {name: naming.saved_module(path) for name, path in self._paths.items()}
        config.ranks = {saved[name]: config.ranks[name] for name in self._paths}
        transposed = getattr(config, "transposed", ())
        if transposed:
            config.transposed = [saved[name] for name in transposed if name in saved]

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        """Replace the low-rank modules of a model by dense layers, in place."""
        for path, module in [(path, m) for path, m in model.named_modules() if isinstance(m, LowRank)]:
            model.set_submodule(path, module.dense())
        return model if dtype is None else model.to(dtype)


def _stored_shapes(files: Sequence[str]) -> Mapping[str, Sequence[int]]:
    """Return the shapes of all tensors in safetensors files, by name."""
    shapes: dict[str, Sequence[int]] = {}
    for file in files:
        if str(file).endswith(".safetensors"):
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    return shapes


def _check_ranks(shapes: Mapping[str, Sequence[int]], ranks: Mapping[str, int]) -> None:
    """Refuse files without the factors of a layer, which transformers would leave at random values."""
    for name, rank in ranks.items():
        stored = [list(shapes.get(f"{name}.{suffix}", ())) for suffix in ("weight_in", "weight")]
        if shapes and (not all(stored) or stored[0][0] % rank or stored[1][1:2] != [rank]):
            raise LrzipError(
                f"{WHERE} gives `{name}` rank {rank}, which its tensors do not have: "
                f"weight_in {stored[0]}, weight {stored[1]}. Fetch or compress the folder again."
            )
