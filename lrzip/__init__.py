"""Make trained checkpoints smaller and faster by low-rank factorization.

The verbs of the command line, for Python: `analyze`, `compress`, `finetune` and `export` take and write files, `curve`
plans for several budgets, `compress_within` goes as far as a bound on the metric allows, `evaluate` measures on the
data of a `Learning`, `load_into` puts the layers of a compressed file into a live model, `factorize` compresses a live
model itself. They are imported on first use, so that `import lrzip` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lrzip.core.version import __version__

if TYPE_CHECKING:
    from lrzip.api.analyze import analyze
    from lrzip.api.compress import compress
    from lrzip.api.curve import curve
    from lrzip.api.export import export
    from lrzip.api.factorize import factorize
    from lrzip.api.finetune import finetune
    from lrzip.core.errors import LrzipError
    from lrzip.formats.load import load_into
    from lrzip.search.compress_within import compress_within
    from lrzip.training.evaluation import evaluate
    from lrzip.training.learning import Learning

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
    "analyze": "lrzip.api.analyze",
    "compress": "lrzip.api.compress",
    "compress_within": "lrzip.search.compress_within",
    "curve": "lrzip.api.curve",
    "evaluate": "lrzip.training.evaluation",
    "export": "lrzip.api.export",
    "factorize": "lrzip.api.factorize",
    "finetune": "lrzip.api.finetune",
    "load_into": "lrzip.formats.load",
    "Learning": "lrzip.training.learning",
    "LrzipError": "lrzip.core.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lrzip' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
