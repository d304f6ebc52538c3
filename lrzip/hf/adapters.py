"""Adapters of PEFT on low-rank modules that are targeted by the name of the layer that they replace.

PEFT adapts the two layers inside a low-rank module by itself, if they are targeted (`all-linear`, or `q_proj.1`). It
has no adapter for the module around them, which a name such as `q_proj` matches; that is registered here.
"""

import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

from lrzip.core.errors import LrzipError
from lrzip.hf.modules import LowRankLinear


@cache
def register_with_peft() -> None:
    """Let LoRA and IA3 of PEFT target low-rank linear modules, if PEFT is installed."""
    if find_spec("peft") is None:
        return
    from peft.tuners import ia3, lora

    around = _around_low_rank(lora.Linear)
    create_lora, create_ia3 = lora.LoraModel._create_new_module, ia3.IA3Model._create_new_module

    def new_lora(config: Any, *args: Any, **kwargs: Any) -> Any:
        config._register_custom_module({LowRankLinear: around})
        return create_lora(config, *args, **kwargs)

    def new_ia3(config: Any, name: str, target: Any, **kwargs: Any) -> Any:
        if not isinstance(target, LowRankLinear):
            return create_ia3(config, name, target, **kwargs)
        # Inputs are those of the first layer, outputs those of the second, so the vector scales the same values there.
        index = 0 if kwargs.get("is_feedforward") else 1
        target[index] = create_ia3(config, name, target[index], **kwargs)
        return target

    lora.LoraModel._create_new_module = staticmethod(new_lora)
    ia3.IA3Model._create_new_module = staticmethod(new_ia3)


def _around_low_rank(linear: type[Any]) -> type[Any]:
    """Return a subclass of PEFT's LoRA of linear layers that is placed around low-rank modules."""

    class LowRankLora(linear):  # type: ignore[misc]  # peft is not followed
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            with warnings.catch_warnings():  # PEFT warns of layers that it does not know, and takes their sizes
                warnings.filterwarnings("ignore", "Unsupported layer type")
                super().__init__(*args, **kwargs)

        def merge(self, *args: Any, **kwargs: Any) -> None:
            """Refuse to merge into low-rank weights, whose sum with an adapter has another rank."""
            if isinstance(self.get_base_layer(), LowRankLinear):
                raise LrzipError(
                    "An adapter around a low-rank module cannot be merged into it. Adapt the layers inside, such as by "
                    "`target_modules='all-linear'`, or call `dequantize()` of the model first."
                )
            super().merge(*args, **kwargs)

    return LowRankLora
