"""Compress a checkpoint."""

from pathlib import Path
from typing import Unpack

from lrzip.api.keywords import COMPRESS_GROUPS, CompressOptions
from lrzip.api.requests import check_setup, setup_of
from lrzip.core.declarations import Options, documented
from lrzip.core.errors import UsageError
from lrzip.core.layers import Layer
from lrzip.core.options import Factoring, LayerRules, NamedTarget, Selection, Speedup, Target
from lrzip.core.output_options import Writing
from lrzip.core.report import Report
from lrzip.formats.files.atomic import check_output
from lrzip.formats.files.space import check_space
from lrzip.formats.outputs import check_program, default_output, not_carried, output_format
from lrzip.formats.protocols import Checkpoint, Guarded
from lrzip.pipeline.request import Request, request_of, target_of
from lrzip.pipeline.session import Session, open_session


@documented(CompressOptions, *COMPRESS_GROUPS)
def compress(path: str | Path, output: str | Path | None = None, **options: Unpack[CompressOptions]) -> Report:
    """Replace layers of a checkpoint by low-rank factors, and write the result.

    Each replaced layer `x` is stored as the weights of an `nn.Sequential`: `x.0.weight`, `x.1.weight`, …, with the
    bias in the last one. All other tensors and entries are copied unchanged. In ONNX models and `.pt2` programs a node
    for each factor takes the place of each node that uses the layer; the outputs before and after are compared if the
    program can be run.

    Args:
        path: File written by torch.save, torch.export, safetensors or ONNX, or a sharded or transformers folder.
        output: File or folder to write; by default `model.lrzip.pt` beside `model.pt`. The suffix names the format.
        **options: Keywords as declared in `lrzip.core.options`. Exactly one of `energy`, `ratio`, `rank`, `error`,
            `vbmf`, `budget`, `rank_rule` and `plan` is required.

    Returns:
        The report: the plan, and the errors, sizes and costs that result.

    Raises:
        UsageError: Options contradict each other or are out of range.
        LrzipError: The compression failed; nothing is written.
    """
    given = Options("compress", CompressOptions, options)
    request = request_of(
        target_of(given[Target], given[NamedTarget]), given[Selection], given[Factoring], given[LayerRules].layers
    )
    setup, writing = setup_of(given), given[Writing]
    check_setup(given)
    _check_budget(request, given)
    source = Path(path)
    destination = Path(output) if output is not None else default_output(source)
    if not writing.dry_run:
        check_output(destination, source, force=setup.force)
    beside = None if writing.dry_run else destination
    with open_session(source, request, setup, output=destination, beside=beside) as session:
        checkpoint = session.checkpoint
        _check_format(checkpoint, destination, request, writing)
        if not writing.dry_run:
            _check_space(session, destination)
        plan = session.plan()
        replaced, format_ = bool(plan.factorize), output_format(destination, checkpoint.format)
        dropped = not_carried(
            format_,
            checkpoint,
            optimizer=replaced and not writing.keep_optimizer,
            others=replaced and not writing.keep_others,
        )
        return session.report(plan, dropped=dropped) if writing.dry_run else session.write(plan, destination, dropped)


def _check_space(session: Session, destination: Path) -> None:
    """Refuse an output that does not fit its disk whatever the ranks are, before the weights are read."""
    weights = sum(item.weight.nbytes for item in session.layers if isinstance(item, Layer))
    check_space(destination, sum(spec.nbytes for spec in session.checkpoint.tensors().values()) - weights)


def _check_budget(request: Request, given: Options) -> None:
    """Raise a UsageError for options that override what a budget decides."""
    overriding = {
        "force_factorize": request.factoring.force_factorize,
        "min_speedup": given[Speedup].min_speedup is not None,
    }
    for name, is_given in overriding.items():
        if request.unit and is_given:
            raise UsageError(f"`{name}` overrides what a budget decides. Take one of them.")


def _check_format(checkpoint: Checkpoint, destination: Path, request: Request, writing: Writing) -> None:
    """Refuse an output that could not be written, before any work is done."""
    format_ = output_format(destination, checkpoint.format)
    check_program(checkpoint, format_, destination, force_factorize=request.factoring.force_factorize)
    if isinstance(checkpoint, Guarded) and not writing.dry_run:
        checkpoint.refuse_replacing(format_)
