"""Limits of the output of a search, so that nothing it cannot hold becomes a candidate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from lrzip.core.layers import Keep
from lrzip.core.options import Opening
from lrzip.core.structure import Structure
from lrzip.formats.open import open_checkpoint
from lrzip.formats.outputs import check_program, obstacle_of, output_format
from lrzip.formats.protocols import Guarded
from lrzip.networks.architecture import Architecture
from lrzip.networks.matching import match


@dataclass(frozen=True)
class Limits:
    """Tensors and structures that the output of a search cannot hold.

    Attributes:
        untouchable: Tensors of the network that must stay as they are, with the reason.
        obstacle: States why the output cannot hold a structure.
    """

    untouchable: Mapping[str, str] = field(default_factory=dict)
    obstacle: Callable[[Structure], str | None] = lambda _: None


def limits_of(source: Path, destination: Path, model: nn.Module, opening: Opening) -> Limits:
    """Return what an output of a checkpoint cannot hold.

    Args:
        source: The checkpoint.
        destination: The output.
        model: Its network.
        opening: How the checkpoint is opened.

    Raises:
        LrzipError: The checkpoint does not fit the network, or the output cannot be written at all.
    """
    with open_checkpoint(source, key=opening.key, trust=opening.trust) as checkpoint:
        format_ = output_format(destination, checkpoint.format)
        check_program(checkpoint, format_, destination, force_factorize=False)
        if isinstance(checkpoint, Guarded):
            checkpoint.refuse_replacing(format_)
        architecture = Architecture.of(model)
        matched = match(source, checkpoint.tensors(), architecture)
        matched.check_reversible()
        names = {spec.name: name for name, spec in matched.specs.items()}
        kept = [item for item in checkpoint.layers(architecture) if isinstance(item, Keep)]
    untouchable = {names[item.tensor.name]: item.reason for item in kept if item.tensor.name in names}
    return Limits(untouchable, obstacle_of(format_))
