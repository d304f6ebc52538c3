"""Write the tensors of a tuned network into a copy of its checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lrzip.core.layers import Keep
from lrzip.core.plan import Factorize, Plan, fingerprint
from lrzip.core.report import Report
from lrzip.core.version import __version__
from lrzip.decompositions import DEFAULT_DECOMPOSITION, decomposition_of
from lrzip.formats import FORMATS
from lrzip.formats.open import open_checkpoint
from lrzip.formats.outputs import not_carried, output_format, size_on_disk
from lrzip.formats.protocols import Checkpoint
from lrzip.formats.rewrite import write_state
from lrzip.linalg.svd import Solver
from lrzip.networks.architecture import Architecture
from lrzip.networks.matching import match_names
from lrzip.networks.weights import is_parameter
from lrzip.pipeline.selection import select
from lrzip.search.variants import Ranks


@dataclass(frozen=True)
class Opening:
    """How to open the source checkpoint.

    Attributes:
        path: The file or folder.
        key: Entry of a nested file that holds the weights.
        trust: Whether code from the file may be executed.
    """

    path: Path
    key: str | None
    trust: bool


def write_network(
    destination: Path,
    opening: Opening,
    architecture: Architecture,
    state: Mapping[str, Tensor],
    ranks: Ranks,
    *,
    only: Sequence[str],
    skip: Sequence[str],
) -> Report:
    """Write a checkpoint with the tensors of a factorized network in place of the dense ones.

    Args:
        destination: The file or folder to write.
        opening: The dense checkpoint.
        architecture: Architecture of the dense network.
        state: The state_dict of the factorized network.
        ranks: Ranks of its factorized layers.
        only: Patterns of the layers that were included.
        skip: Patterns of the layers that were excluded.
    """
    with open_checkpoint(opening.path, key=opening.key, trust=opening.trust) as checkpoint:
        format_ = output_format(destination, checkpoint.format)
        plan = _plan(checkpoint, architecture, ranks, only, skip)
        dropped = not_carried(format_, checkpoint, optimizer=True)
        layout = plan.layout(checkpoint.tensors())
        specs = match_names(opening.path, {entry.spec.name: entry.spec for entry in layout}, architecture)
        names = {spec.name: name for name, spec in specs.items()}
        write_state(destination, checkpoint, layout, names, state, format_=format_, drop=list(dropped))
        return Report(
            plan=plan,
            results=[],
            output=destination,
            parameters_before=sum(spec.numel for spec in checkpoint.tensors().values() if is_parameter(spec)),
            nbytes_before=checkpoint.nbytes,
            nbytes_after=size_on_disk(destination, format_),
            dropped=tuple(dropped.items()),
            seconds=0.0,
            version=__version__,
            usage=FORMATS[format_].usage,
        )


def _plan(
    checkpoint: Checkpoint, architecture: Architecture, ranks: Ranks, only: Sequence[str], skip: Sequence[str]
) -> Plan:
    """Return the plan with these ranks, in which all other layers stay dense."""
    decomposition = decomposition_of(DEFAULT_DECOMPOSITION, Solver())
    decisions: list[Factorize | Keep] = []
    for item in select(checkpoint.layers(architecture), only=only, skip=skip):
        if isinstance(item, Keep):
            decisions.append(item)
        elif item.name not in ranks:
            decisions.append(Keep(item.name, item.weight, "kept by `--max-drop`"))
        else:
            structure = decomposition.blueprint(item, ranks[item.name])
            decisions.append(Factorize(item, DEFAULT_DECOMPOSITION, ranks[item.name], structure, item.weight.dtype))
    return Plan(
        tuple(item for item in decisions if isinstance(item, Factorize)),
        tuple(item for item in decisions if isinstance(item, Keep)),
        str(checkpoint.path),
        fingerprint(checkpoint.tensors()),
    )
