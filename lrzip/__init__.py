"""Make trained checkpoints smaller and faster by low-rank factorization.

The verbs of the command line, for Python: `analyze`, `compress`, `finetune` and `export` take and write files, `curve`
plans for several budgets, `load_into` puts the layers of a compressed file into a live model, `factorize` compresses a
live model itself. They are imported on first use, so that `import lrzip` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrzip.analysis import analyze
    from lrzip.compression import compress
    from lrzip.curves import curve
    from lrzip.errors import LrzipError
    from lrzip.exporting import export
    from lrzip.finetuning import finetune
    from lrzip.live import factorize
    from lrzip.loading import load_into

__version__ = "0.1.0"

__all__ = ["LrzipError", "__version__", "analyze", "compress", "curve", "export", "factorize", "finetune", "load_into"]

_HOMES = {
    "analyze": "lrzip.analysis",
    "compress": "lrzip.compression",
    "curve": "lrzip.curves",
    "export": "lrzip.exporting",
    "factorize": "lrzip.live",
    "finetune": "lrzip.finetuning",
    "load_into": "lrzip.loading",
    "LrzipError": "lrzip.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lrzip' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
