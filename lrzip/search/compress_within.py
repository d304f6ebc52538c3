"""Compress as far as a bound on the metric allows."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from lrzip.core.errors import LrzipError, OutputExists, UsageError
from lrzip.core.layers import Keep
from lrzip.core.numbers import finite
from lrzip.core.plan import Factorize, Plan, fingerprint
from lrzip.core.report import Report
from lrzip.core.version import __version__
from lrzip.decompositions import DEFAULT_DECOMPOSITION, decomposition_of
from lrzip.formats import FORMATS
from lrzip.formats.files.atomic import check_output
from lrzip.formats.open import open_checkpoint
from lrzip.formats.outputs import default_output, not_carried, output_format, size_on_disk
from lrzip.formats.protocols import Checkpoint
from lrzip.formats.rewrite import write_state
from lrzip.linalg.svd import Solver
from lrzip.networks.architecture import Architecture
from lrzip.networks.inference import is_parameter, match_names
from lrzip.pipeline.selection import select
from lrzip.search.strategies import STRATEGIES, manner, search
from lrzip.search.trials import Interrupted, States, Trial, Trials
from lrzip.search.variants import Ranks, Variants
from lrzip.training.bench import make_bench
from lrzip.training.cache import Cache
from lrzip.training.evaluation import read_test
from lrzip.training.learning import Learning
from lrzip.training.outcomes import StepCallback


@dataclass(frozen=True)
class SearchReport:
    """What a compression within a bound came to.

    Attributes:
        report: Of the compression, as of any other; errors of tuned factors mean nothing, so there are none.
        strategy: That found it.
        max_drop: As it was asked for.
        metric: That counts.
        higher_is_better: Whether more of it is better.
        unit: What a drop of 1 is in it.
        drop: By how much the metric got worse on the validation set, in the units of `max_drop`.
        dense: The network as it was.
        best: What was written.
        tried: All networks that were tried, in order.
        examples: Numbers of examples of the training and the validation set.
        test: Metrics on test data of the dense network and of what was written, if they were asked for.
        interrupted: Whether someone stopped the search before its end.
        log: The file that holds all decisions, if there is one.
    """

    report: Report
    strategy: str
    max_drop: float
    metric: str
    higher_is_better: bool
    unit: float
    drop: float
    dense: Trial
    best: Trial
    tried: Sequence[Trial]
    examples: tuple[int, int]
    test: tuple[Mapping[str, float], Mapping[str, float]] | None
    interrupted: bool
    log: Path | None

    @property
    def standard_error(self) -> float | None:
        """The standard error of the metric after, in the units of `max_drop`; None unless it is a share of examples.

        That of a binomial share, √(p (1 - p) / n). It is estimated from the examples that also chose the network, which
        makes the share look better than on others.
        """
        if self.unit == 1:
            return None
        share = self.best.scores[self.metric]
        return sqrt(share * (1 - share) / self.examples[1]) / self.unit

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        test = {"before": _finite(self.test[0]), "after": _finite(self.test[1])} if self.test else None
        return self.report.to_dict() | {
            "search": {
                "strategy": self.strategy,
                "max_drop": self.max_drop,
                "manner": manner(self.max_drop * self.unit * 100),
                "metric": self.metric,
                "drop": self.drop,
                "standard_error": self.standard_error,
                "before": _finite(self.dense.scores),
                "after": _finite(self.best.scores),
                "test": test,
                "train_examples": self.examples[0],
                "val_examples": self.examples[1],
                "interrupted": self.interrupted,
                "tried": [one.to_dict() for one in self.tried],
            }
        }


def compress_within(
    path: str | Path,
    output: str | Path | None = None,
    *,
    max_drop: float,
    model: nn.Module,
    learning: Learning,
    strategy: str = "global",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    calibrate: bool = False,
    test: str | None = None,
    log: str | Path | None = None,
    resume: bool = False,
    key: str | None = None,
    trust: bool = False,
    force: bool = False,
    announce: Callable[[str], None] | None = None,
    watch: StepCallback | None = None,
    decided: Callable[[Trial], None] | None = None,
) -> SearchReport:
    """Make a dense checkpoint as small as a bound on its metric on the validation set allows, tuning on the way.

    Networks are factorized, tuned (the dense network teaches, beside the labels if there are any) and measured, each
    once. What is written are the tensors of the best one within the bound. Test data is looked at once, at the end.

    Args:
        path: The checkpoint.
        output: Where to write; by default `model.lrzip.pt` beside `model.pt`.
        max_drop: By how much the metric may get worse: points (hundredths) of accuracy, units of any other metric.
        model: An instance of the dense architecture, changed in place.
        learning: What to measure on, and how one brief fine-tune goes.
        strategy: One of `lrzip.search.strategies.STRATEGIES`.
        only: Globs of the layers to take.
        skip: Globs of the layers to leave.
        options: Of `lrzip.factorize`: how factors are computed and budgets spent.
        calibrate: Whether examples of the training set, without labels, choose factors, and ranks within a budget. It
            may take longer than a brief fine-tune, which makes up for much of what it saves.
        test: Where the test set is.
        log: File that gets a line of JSON for each network that was tried. Beside it, in `LOG.states`, are the networks
            to go on from, and in the end the best.
        resume: Go on with what the log holds.
        key: Which entry of a nested file holds the weights.
        trust: Allow what would run code from the files.
        force: Overwrite an existing output and log.
        announce: Called before each fine-tune, with what is tried.
        watch: Called after each of its steps.
        decided: Called with each network that was tried.

    Raises:
        UsageError: The options contradict each other or are out of range.
        LrzipError: Nothing smaller is within the bound, or it could not be done; nothing is written.
    """
    start = perf_counter()
    source = Path(path)
    destination = Path(output) if output is not None else default_output(source)
    _check(max_drop, strategy)
    check_output(destination, source, force=force)
    logged = _log(log, resume=resume, force=force)
    tested = read_test(test, learning) if test is not None else None
    bench = make_bench(source, model, learning, distil=True, key=key, trust=trust)
    chosen = {"seed": learning.settings.seed, **(options or {})}
    variants = Variants.of(
        bench.model, only=only, skip=skip, options=chosen, examples=bench.train if calibrate else None
    )
    trials = Trials(
        bench,
        variants,
        Cache(logged),
        States(logged.with_name(f"{logged.name}.states") if logged else None),
        max_drop * bench.unit,
        announce=announce,
        watch=watch,
        decided=decided,
    )
    best, interrupted = _searched(strategy, trials)
    state = trials.state(best)
    report = _write(source, destination, variants.architecture, best.ranks, state, (only, skip), key=key, trust=trust)
    scores = None
    if tested is not None and not interrupted:
        scores = bench.score(variants.model, tested), bench.score(variants.built(state), tested)
    trials.keep(best)
    return SearchReport(
        replace(report, seconds=perf_counter() - start),
        strategy,
        max_drop,
        bench.scorer.first,
        bench.scorer.higher_is_better,
        bench.unit,
        (trials.gain(trials.dense) - trials.gain(best)) / bench.unit,
        trials.dense,
        best,
        trials.tried,
        (len(bench.train), len(bench.val)),
        scores,
        interrupted,
        logged,
    )


def _check(max_drop: float, strategy: str) -> None:
    if not (isfinite(max_drop) and max_drop >= 0):
        raise UsageError(f"`--max-drop` takes a number from 0 on, got {max_drop:g}.")
    if strategy not in STRATEGIES:
        raise UsageError(f"`--strategy` takes {', '.join(STRATEGIES)}, got `{strategy}`.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("`--max-drop` runs in one process. Start it without torchrun.")


def _log(log: str | Path | None, *, resume: bool, force: bool) -> Path | None:
    if log is None:
        if resume:
            raise UsageError("`--resume` goes on with what a log holds. Give it with `--log FILE.jsonl`.")
        return None
    path = Path(log)
    if not path.absolute().parent.is_dir():
        raise LrzipError(f"The folder of `{path}` does not exist. Create it first.")
    if path.exists() and not resume:
        if not force:
            raise OutputExists(f"`{path}` exists. Pass `--resume` to go on with it, or `--force` to begin anew.")
        Cache(path)  # refuses a file that is something else
        path.unlink()
    return path


def _searched(strategy: str, trials: Trials) -> tuple[Trial, bool]:
    """Return the smallest network within the bound, and whether the search was interrupted."""
    try:
        best, interrupted = search(strategy, trials, trials.bench.learning.settings), False
    except Interrupted:
        within = [one for one in trials.tried if one.within and trials.states.get(one.key) is not None]
        best, interrupted = min(within, key=lambda one: one.parameters, default=trials.dense), True
    if best is not trials.dense:
        return best, interrupted
    if interrupted:
        raise KeyboardInterrupt
    scorer = trials.bench.scorer
    allowed = trials.floor if scorer.higher_is_better else -trials.floor
    closest = max(trials.tried, key=trials.gain, default=None)
    reached = f"the best that was tried has {closest.scores[scorer.first]:.4g}" if closest else "none could be tried"
    raise LrzipError(
        f"No smaller network keeps {scorer.first} within {allowed:.4g} on the validation set; {reached}. Raise "
        "`--max-drop`, or tune longer with `--epochs`."
    )


def _write(
    source: Path,
    destination: Path,
    architecture: Architecture,
    ranks: Ranks,
    state: Mapping[str, Tensor],
    chosen: tuple[Sequence[str], Sequence[str]],
    *,
    key: str | None,
    trust: bool,
) -> Report:
    """Write the source with the tensors of a factorized network in place of its own."""
    with open_checkpoint(source, key=key, trust=trust) as checkpoint:
        format_ = output_format(destination, checkpoint.format)
        plan = _plan(checkpoint, architecture, ranks, *chosen)
        dropped = not_carried(format_, checkpoint, optimizer=True)
        layout = plan.layout(checkpoint.tensors())
        specs = match_names(source, {entry.spec.name: entry.spec for entry in layout}, architecture)
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
    """Return the plan that gives layers these ranks and leaves all others whole."""
    decomposition = decomposition_of(DEFAULT_DECOMPOSITION, Solver())
    decisions: list[Factorize | Keep] = []
    for item in select(checkpoint.layers(architecture), only=only, skip=skip):
        if isinstance(item, Keep):
            decisions.append(item)
        elif item.name not in ranks:
            decisions.append(Keep(item.name, item.weight, "kept by `--max-drop`"))
        else:
            rank = (ranks[item.name],)
            stages = decomposition.blueprint(item, rank)
            decisions.append(Factorize(item, DEFAULT_DECOMPOSITION, rank, stages, item.weight.dtype))
    return Plan(
        tuple(item for item in decisions if isinstance(item, Factorize)),
        tuple(item for item in decisions if isinstance(item, Keep)),
        str(checkpoint.path),
        fingerprint(checkpoint.tensors()),
    )


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: finite(value) for name, value in scores.items()}
