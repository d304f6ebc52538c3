"""Count the multiply-accumulates of whatever PyTorch computes within a context."""

import re
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from lrzip.networks.formulas import formulas

# Words in the names of operators that multiply matrices, and words of those that only prepare weights.
_PRODUCTS = re.compile(r"\w*mm|\w*matmul|linear|conv(?!ert)\w*|attention|rnn|lstm|gru|\w*mv")
_PREPARATIONS = {"prepack", "unpack", "reorder", "flatten", "backward"}
# Namespaces of PyTorch's own operators; of the operators of others nothing is known.
_OWN = {"aten", "prim", "prims", "quantized", "_quantized", "mkldnn", "mkl", "onednn", "sparse", "torchvision"}
_OWN |= {"inductor", "_c10d_functional", "c10d", "profiler", "debugprims", "rngprims", "symm_mem"}


class MacCounter:
    """A context that counts multiply-accumulates.

    Matrix products, convolutions, attention, recurrent and bilinear layers are counted, and no element-wise operations.
    """

    def __init__(self) -> None:
        known = formulas()
        self._flops = FlopCounterMode(display=False, custom_mapping=dict(known))
        self._witness = _Witness({*known, *flop_registry})
        self._modes = ExitStack()

    @property
    def macs(self) -> int:
        """Multiply-accumulates so far."""
        return int(self._flops.get_total_flops()) // 2

    @property
    def not_counted(self) -> str | None:
        """The operators without a formula that may multiply, as text; None if there are none."""
        names = ", ".join(f"`{name}`" for name in sorted(self._witness.unknown))
        return f"the products of {names}" if names else None

    def __enter__(self) -> Self:
        # The inner mode decomposes composite operators, so the outer one sees those that are executed.
        self._modes.enter_context(self._witness)
        self._modes.enter_context(self._flops)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._modes.__exit__(kind, error, traceback)


class _Witness(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the names of operators without a formula that may multiply."""

    def __init__(self, known: set[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = known
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = getattr(func, "_overloadpacket", None)
        if packet is not None and packet not in self._known and _may_multiply(str(packet)):
            self.unknown.add(str(packet))
        return func(*args, **(kwargs or {}))


def _may_multiply(name: str) -> bool:
    """Return whether an operator without a formula may multiply, by its name such as `aten.quantized_lstm`."""
    namespace, _, operator = name.partition(".")
    words = set(operator.strip("_").split("_"))
    return namespace not in _OWN or (any(map(_PRODUCTS.fullmatch, words)) and not _PREPARATIONS & words)
