"""What a calibration may make up for, beside choosing factors by what they do to inputs."""

from dataclasses import dataclass, fields

from lrzip.core.errors import UsageError


@dataclass(frozen=True)
class Corrections:
    """Each can be had alone, but all that change targets build on `sequential`.

    Attributes:
        bias: Means that factors miss go into the layer's bias, or into the running mean of a batch norm after it.
        sequential: Layers are fitted to dense outputs from the inputs that they get in the compressed network.
        residual: A layer whose output is added to another branch makes up for what that branch has lost.
        refit: Layers that stay whole are fitted again too, unless they were left out by name.
        response: A layer before a ReLU is fitted to what comes out of that.
    """

    bias: bool = False
    sequential: bool = False
    residual: bool = False
    refit: bool = False
    response: bool = False

    @classmethod
    def parse(cls, text: str) -> "Corrections":
        """Return what a list of names such as `sequential,bias` stands for; `none` for nothing.

        Raises:
            UsageError: A name is none of them, or goes only with another.
        """
        known = [field.name for field in fields(cls)]
        names = [] if text == "none" else [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise UsageError(f"`--correct` takes none, or some of {', '.join(known)}, got `{name}`.")
        found = cls(**dict.fromkeys(names, True))
        if (found.residual or found.refit or found.response) and not found.sequential:
            raise UsageError("`--correct`: `residual`, `refit` and `response` go with `sequential`. Add it.")
        return found

    def __str__(self) -> str:
        return ",".join(field.name for field in fields(self) if getattr(self, field.name)) or "none"
