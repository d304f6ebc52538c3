"""Training and measuring networks. Only here are accelerate and torchmetrics needed, of the extra `train`."""

from importlib.util import find_spec

from lrzip.errors import LrzipError

for _package in ("accelerate", "torchmetrics"):
    if find_spec(_package) is None:
        raise LrzipError(f"Training needs {_package}. Install it with `pip install 'lrzip-nn[train]'`.")
