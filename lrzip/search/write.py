"""Write the tensors of a tuned network into a copy of its checkpoint."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lrzip.core.report import Report
from lrzip.formats.outputs import not_carried, output_format
from lrzip.formats.rewrite import write_state
from lrzip.networks.matching import match
from lrzip.pipeline.session import Session
from lrzip.search.variants import KEPT, Ranks


def write_network(session: Session, destination: Path, state: Mapping[str, Tensor], ranks: Ranks) -> Report:
    """Write a checkpoint with the tensors of a factorized network in place of the dense ones.

    Args:
        session: A session over the dense checkpoint, with its architecture.
        destination: The file or folder to write.
        state: The state_dict of the factorized network.
        ranks: Ranks of its factorized layers.

    Raises:
        LrzipError: The output could not be written; no partial output remains.
    """
    checkpoint, architecture = session.checkpoint, session.architecture
    assert architecture, "a search has an architecture"
    format_ = output_format(destination, checkpoint.format)
    plan = session.plan_with(ranks, reason=KEPT)
    dropped = not_carried(format_, checkpoint, optimizer=True)
    layout = plan.layout(checkpoint.tensors())
    matched = match(checkpoint.path, {entry.spec.name: entry.spec for entry in layout}, architecture)
    write_state(destination, checkpoint, layout, matched.stored(state), format_=format_, drop=list(dropped))
    return session.report(plan, output=destination, dropped=dropped)
