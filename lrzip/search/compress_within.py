"""Compress as far as a bound on the metric allows."""

import os
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Unpack

from torch import nn

from lrzip.api.keywords import CalibrationKeywords
from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.declarations import Options, documented
from lrzip.core.errors import LrzipError, OutputExists, UsageError, typed_line
from lrzip.core.options import Factoring, Opening, Selection
from lrzip.core.output_options import Overwriting
from lrzip.core.report import Report
from lrzip.core.training_options import Bound
from lrzip.formats.files.atomic import check_output
from lrzip.formats.outputs import default_output
from lrzip.pipeline.session import open_session
from lrzip.pipeline.setup import Setup
from lrzip.search.best import Best
from lrzip.search.keywords import SEARCH_GROUPS, SearchKeywords, SearchOptions, VariantOptions
from lrzip.search.limits import Limits, limits_of
from lrzip.search.report import SearchReport, search_report
from lrzip.search.states import States
from lrzip.search.strategies import DEFAULT_STRATEGY, STRATEGIES, search
from lrzip.search.trial import Trial
from lrzip.search.trials import Callbacks, Interrupted, Trials
from lrzip.search.variants import Variants
from lrzip.search.write import write_network
from lrzip.training.bench import Bench, make_bench
from lrzip.training.cache import Cache
from lrzip.training.data.samples import Samples
from lrzip.training.evaluation import read_test
from lrzip.training.learning import Learning


@documented(SearchOptions, *SEARCH_GROUPS)
def compress_within(
    path: str | Path,
    output: str | Path | None = None,
    *,
    max_drop: float,
    model: nn.Module,
    learning: Learning,
    **options: Unpack[SearchOptions],
) -> SearchReport:
    """Compress a dense checkpoint as far as a bound on its validation metric allows, with fine-tuning on the way.

    Each factorized network is tuned (by distillation, and by labels if there are any) and measured once. The tensors of
    the smallest one within the bound are written, and those of the first one early: if the search fails later, the
    output holds the smallest network so far. Test data is used once, at the end.

    Args:
        path: The checkpoint.
        output: The file or folder to write; by default `model.lrzip.pt` beside `model.pt`.
        max_drop: Largest loss of the metric, in percentage points of accuracy or units of any other metric.
        model: An instance of the dense architecture, modified in place.
        learning: Data, metrics and settings of one brief fine-tuning.
        **options: Keywords as declared in `lrzip.core.training_options.Bound` and `lrzip.search.keywords`.

    Raises:
        UsageError: The options contradict each other or are out of range.
        LrzipError: No smaller network is within the bound, and nothing is written; or the search failed.
    """
    start = perf_counter()
    given = Options("compress_within", SearchOptions, options)
    source, bound, opening = Path(path), given[Bound], given[Opening]
    strategy = _checked_strategy(bound, max_drop)
    destination, log = _checked_paths(source, output, bound, given[Overwriting])
    test_set = read_test(bound.test, learning) if bound.test is not None else None
    limits = limits_of(source, destination, model, opening)
    bench = make_bench(source, model, learning, distil=True, key=opening.key, trust=opening.trust)
    trials = _trials(bench, given, max_drop, log, limits)
    written = Best(trials, lambda trial: _write(trials, trial, source, destination, opening))
    best, interrupted = _search(strategy, trials, written, destination)
    report = written.put(best)
    test = _test_scores(trials, best, test_set) if test_set is not None and not interrupted else None
    trials.keep(best)
    found = search_report(trials, best, replace(report, seconds=perf_counter() - start), strategy, max_drop)
    return replace(found, test=test, interrupted=interrupted, log=log)


def _trials(bench: Bench, given: Options, max_drop: float, log: Path | None, limits: Limits) -> Trials:
    """Return the `Trials` that a search runs."""
    how = given[SearchKeywords]
    options = {"seed": bench.learning.settings.seed, **(how.options or {})}
    factoring = Options("options of compress_within", VariantOptions, options)
    variants = Variants(
        bench.model,
        given[Selection],
        factoring[Factoring],
        bench.train if how.calibrate else None,
        factoring[CalibrationKeywords].calibration or CalibrationSettings(),
        limits,
    )
    states = States(log.with_name(f"{log.name}.states") if log else None)
    callbacks = Callbacks(how.announce, how.watch, how.decided)
    return Trials(bench, variants, Cache(log), states, max_drop * bench.unit, callbacks)


def _checked_strategy(bound: Bound, max_drop: float) -> str:
    strategy = bound.strategy or DEFAULT_STRATEGY
    if not (isfinite(max_drop) and max_drop >= 0):
        raise UsageError(f"`max_drop` takes a number from 0 on, got {max_drop:g}.")
    if strategy not in STRATEGIES:
        raise UsageError(f"`strategy` takes {', '.join(STRATEGIES)}, got `{strategy}`.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("`max_drop` runs in one process. Start it without torchrun.")
    return strategy


def _checked_paths(
    source: Path, output: str | Path | None, bound: Bound, overwriting: Overwriting
) -> tuple[Path, Path | None]:
    """Return the paths of the output and of the log, if any, after checking that they may be written."""
    destination = Path(output) if output is not None else default_output(source)
    check_output(destination, source, force=overwriting.force)
    return destination, _prepared_log(bound, overwriting)


def _prepared_log(bound: Bound, overwriting: Overwriting) -> Path | None:
    """Return the path of the log, after deleting an existing one that is not to be resumed."""
    if bound.log is None:
        if bound.resume:
            raise UsageError("`resume` continues the search of a log. Give it with `log`.")
        return None
    path = Path(bound.log)
    if not path.absolute().parent.is_dir():
        raise LrzipError(f"The folder of `{path}` does not exist. Create it first.")
    if path.exists() and not bound.resume:
        if not overwriting.force:
            raise OutputExists(f"`{path}` exists. Pass `resume=True` to continue it, or `force=True` to start again.")
        Cache(path)  # refuses a file that is not a log
        path.unlink()
    return path


def _search(strategy: str, trials: Trials, written: Best, destination: Path) -> tuple[Trial, bool]:
    """Return the smallest network within the bound, and whether the search was interrupted."""
    decided = trials.callbacks.decided

    def offer(trial: Trial) -> None:
        written.offer(trial)
        if decided:
            decided(trial)

    trials.callbacks = replace(trials.callbacks, decided=offer)
    try:
        best, interrupted = search(strategy, trials, trials.bench.learning.settings), False
    except Interrupted:
        best, interrupted = written.keep_smallest() or trials.dense, True
    except Exception as error:
        if written.keep_smallest() is None:
            raise
        raise LrzipError(
            f"The search failed: {typed_line(error)}. `{destination}` holds the smallest network within the bound "
            "that it had found."
        ) from error
    if best is not trials.dense:
        return best, interrupted
    if interrupted:
        raise KeyboardInterrupt
    raise _nothing_within(trials)


def _nothing_within(trials: Trials) -> LrzipError:
    scorer, settings = trials.bench.scorer, trials.bench.learning.settings
    allowed = trials.floor if scorer.higher_is_better else -trials.floor
    closest = max(trials.history, key=trials.gain, default=None)
    reached = f"the best trial has {closest.scores[scorer.first]:.4g}" if closest else "no trial was possible"
    length = f"epochs={settings.epochs}" if settings.steps is None else f"steps={settings.steps}"
    return LrzipError(
        f"No smaller network keeps {scorer.first} within {allowed:.4g} on the validation set; {reached}. Allow more "
        f"than `max_drop={trials.bound / trials.bench.unit:g}`, or tune for longer than `{length}`."
    )


def _write(trials: Trials, best: Trial, source: Path, destination: Path, opening: Opening) -> Report:
    setup = Setup(model=trials.variants.model, opening=opening)
    with open_session(source, trials.variants.request, setup) as session:
        return write_network(session, destination, trials.state(best), best.ranks)


def _test_scores(trials: Trials, best: Trial, test_set: Samples) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Return the metrics of the dense network and of the best one on test data."""
    variants, bench = trials.variants, trials.bench
    network = variants.rebuilt(trials.state(best), best.ranks).network
    return bench.score(variants.model, test_set), bench.score(network, test_set)
