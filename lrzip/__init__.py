"""Make trained checkpoints smaller and faster by low-rank factorization.

The verbs of the command line, for Python: `analyze`, `compress`, `finetune` and `export` take and write files, `curve`
plans for several budgets, `compress_within` goes as far as a bound on the metric allows, `evaluate` measures on the
data of a `Learning`, `load_into` puts the layers of a compressed file into a live model, `factorize` compresses a live
model itself. They are imported on first use, so that `import lrzip` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrzip.analysis import analyze
    from lrzip.bounded import compress_within
    from lrzip.compression import compress
    from lrzip.curves import curve
    from lrzip.errors import LrzipError
    from lrzip.evaluation import Learning, evaluate
    from lrzip.exporting import export
    from lrzip.finetuning import finetune
    from lrzip.live import factorize
    from lrzip.loading import load_into

__version__ = "0.1.0"

__all__ = [
    "Learning",
    "LrzipError",
    "__version__",
    "analyze",
    "compress",
    "compress_within",
    "curve",
    "evaluate",
    "export",
    "factorize",
    "finetune",
    "load_into",
]

_HOMES = {
    "analyze": "lrzip.analysis",
    "compress": "lrzip.compression",
    "compress_within": "lrzip.bounded",
    "curve": "lrzip.curves",
    "evaluate": "lrzip.evaluation",
    "export": "lrzip.exporting",
    "factorize": "lrzip.live",
    "finetune": "lrzip.finetuning",
    "load_into": "lrzip.loading",
    "Learning": "lrzip.evaluation",
    "LrzipError": "lrzip.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lrzip' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
