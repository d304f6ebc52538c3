"""The corrections that a calibration makes, besides fitting factors to the inputs of layers."""

from dataclasses import dataclass, fields

from lrzip.core.errors import UsageError


@dataclass(frozen=True)
class Corrections:
    """Corrections of errors of the factors. Those that change targets require `sequential`.

    Attributes:
        bias: Correct errors of the mean in the layer's bias, or in the running mean of a batch norm after it.
        sequential: Fit layers to their dense outputs, given their inputs in the compressed network.
        residual: Let a layer whose output is added to another branch correct the errors of that branch.
        refit: Refit layers that stay dense too, unless they are skipped by name.
        response: Fit a layer before a ReLU to the output of the ReLU.
    """

    bias: bool = False
    sequential: bool = False
    residual: bool = False
    refit: bool = False
    response: bool = False

    @classmethod
    def parse(cls, text: str) -> "Corrections":
        """Parse a comma-separated list of corrections such as `sequential,bias`, or `none`.

        Raises:
            UsageError: A name is unknown, or requires another.
        """
        known = [field.name for field in fields(cls)]
        names = [] if text == "none" else [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise UsageError(f"`correct` takes none, or some of {', '.join(known)}, got `{name}`.")
        found = cls(**dict.fromkeys(names, True))
        if (found.residual or found.refit or found.response) and not found.sequential:
            raise UsageError("`correct`: `residual`, `refit` and `response` go with `sequential`. Add it.")
        return found

    def __str__(self) -> str:
        return ",".join(field.name for field in fields(self) if getattr(self, field.name)) or "none"
