"""Load compressed folders with transformers: `import lrzip.hf`, then call `from_pretrained` as usual.

Importing this package registers a quantizer with transformers, which replaces the factorized layers of a model by
low-rank modules before the weights are loaded.
"""

try:
    from transformers.quantizers import register_quantizer  # noqa: F401
except ImportError as error:
    raise ImportError("lrzip.hf needs transformers 4.50 or later: pip install 'lrzip-nn[hf]'") from error

from lrzip.hf.modules import LowRankConv, LowRankLinear
from lrzip.hf.quantizer import LrzipConfig, LrzipQuantizer

__all__ = ["LowRankConv", "LowRankLinear", "LrzipConfig", "LrzipQuantizer"]
