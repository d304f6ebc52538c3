"""Properties of tensors by their name, shape and dtype alone."""

from lrzip.core.layers import FACTORIZABLE_DTYPES, TensorSpec
from lrzip.networks.adapters import adapter_reason

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "n_averaged")


def is_parameter(spec: TensorSpec) -> bool:
    """Return whether a tensor counts as parameters: floating point, and not a running statistic of a batch norm."""
    return spec.dtype.startswith(("f", "bf")) and not spec.name.endswith(_BUFFERS)


def not_a_weight(spec: TensorSpec) -> str | None:
    """Return why a tensor cannot be the weight of a layer, by its name, shape and dtype, or None if it can."""
    if len(spec.shape) < 2:
        return "a vector" if spec.shape else "a scalar"
    if not spec.numel:
        return f"empty, {spec.shape}"
    if spec.dtype not in FACTORIZABLE_DTYPES:
        return f"{spec.dtype}, not one of {', '.join(sorted(FACTORIZABLE_DTYPES))}"
    if len(spec.shape) > 5:
        return f"{len(spec.shape)}-dimensional"
    return adapter_reason(spec.name)
