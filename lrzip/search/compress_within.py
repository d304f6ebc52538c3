"""Compress as far as a bound on the metric allows."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn

from lrzip.core.errors import LrzipError, OutputExists, UsageError
from lrzip.formats.files.atomic import check_output
from lrzip.formats.outputs import default_output
from lrzip.search.report import SearchReport
from lrzip.search.states import States
from lrzip.search.strategies import STRATEGIES, search
from lrzip.search.trial import Trial
from lrzip.search.trials import Callbacks, Interrupted, Trials
from lrzip.search.variants import Variants
from lrzip.search.write import Opening, write_network
from lrzip.training.bench import make_bench
from lrzip.training.cache import Cache
from lrzip.training.data.samples import Samples
from lrzip.training.evaluation import read_test
from lrzip.training.learning import Learning
from lrzip.training.outcomes import StepCallback


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
    """Compress a dense checkpoint as far as a bound on its validation metric allows, with fine-tuning on the way.

    Networks are factorized, tuned (by distillation from the dense network, and by labels if there are any) and
    measured, each once. The tensors of the smallest one within the bound are written. Test data is used once, at the
    end.

    Args:
        path: The checkpoint.
        output: The file or folder to write; by default `model.lrzip.pt` beside `model.pt`.
        max_drop: Largest allowed loss of the metric: percentage points of accuracy, or units of any other metric.
        model: An instance of the dense architecture, modified in place.
        learning: Data, metrics and settings of one brief fine-tuning.
        strategy: One of `lrzip.search.strategies.STRATEGIES`.
        only: Patterns of the layers to include.
        skip: Patterns of the layers to exclude.
        options: Options of `lrzip.factorize`: how factors are computed and budgets spent.
        calibrate: Whether unlabeled samples of the training set select factors, and ranks within a budget. That may
            take longer than a brief fine-tuning, which recovers much of what it gains.
        test: Specification of the test set.
        log: File that receives a line of JSON per trial. The folder `LOG.states` beside it holds the networks that
            later trials start from, and finally the best one.
        resume: Continue the search of an existing log.
        key: Entry of a nested file that holds the weights.
        trust: Allow to execute code from the files.
        force: Overwrite an existing output and log.
        announce: Called before each fine-tuning with a description of the trial.
        watch: Called after each step of fine-tuning.
        decided: Called with each trial.

    Raises:
        UsageError: The options contradict each other or are out of range.
        LrzipError: No smaller network is within the bound, or the search failed; nothing is written.
    """
    start = perf_counter()
    source = Path(path)
    destination = Path(output) if output is not None else default_output(source)
    _check(max_drop, strategy)
    check_output(destination, source, force=force)
    log = _prepared_log(log, resume=resume, force=force)
    test_set = read_test(test, learning) if test is not None else None
    bench = make_bench(source, model, learning, distil=True, key=key, trust=trust)
    factoring = {"seed": learning.settings.seed, **(options or {})}
    variants = Variants.of(
        bench.model, only=only, skip=skip, options=factoring, samples=bench.train if calibrate else None
    )
    states = States(log.with_name(f"{log.name}.states") if log else None)
    callbacks = Callbacks(announce, watch, decided)
    trials = Trials(bench, variants, Cache(log), states, max_drop * bench.unit, callbacks)
    best, interrupted = _search(strategy, trials)
    state = trials.state(best)
    opening = Opening(source, key, trust)
    report = write_network(destination, opening, variants.architecture, state, best.ranks, only=only, skip=skip)
    scores = _test_scores(trials, best, test_set) if test_set is not None and not interrupted else None
    trials.keep(best)
    return SearchReport(
        report=replace(report, seconds=perf_counter() - start),
        strategy=strategy,
        max_drop=max_drop,
        metric=bench.scorer.first,
        higher_is_better=bench.scorer.higher_is_better,
        unit=bench.unit,
        drop=(trials.gain(trials.dense) - trials.gain(best)) / bench.unit,
        dense=trials.dense,
        best=best,
        trials=trials.history,
        sample_counts=(len(bench.train), len(bench.val)),
        test=scores,
        interrupted=interrupted,
        log=log,
    )


def _check(max_drop: float, strategy: str) -> None:
    if not (isfinite(max_drop) and max_drop >= 0):
        raise UsageError(f"`--max-drop` takes a number from 0 on, got {max_drop:g}.")
    if strategy not in STRATEGIES:
        raise UsageError(f"`--strategy` takes {', '.join(STRATEGIES)}, got `{strategy}`.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("`--max-drop` runs in one process. Start it without torchrun.")


def _prepared_log(log: str | Path | None, *, resume: bool, force: bool) -> Path | None:
    """Return the path of the log, after deleting an existing one that is not to be resumed."""
    if log is None:
        if resume:
            raise UsageError("`--resume` continues the search of a log. Give it with `--log FILE.jsonl`.")
        return None
    path = Path(log)
    if not path.absolute().parent.is_dir():
        raise LrzipError(f"The folder of `{path}` does not exist. Create it first.")
    if path.exists() and not resume:
        if not force:
            raise OutputExists(f"`{path}` exists. Pass `--resume` to continue it, or `--force` to start again.")
        Cache(path)  # refuses a file that is not a log
        path.unlink()
    return path


def _search(strategy: str, trials: Trials) -> tuple[Trial, bool]:
    """Return the smallest network within the bound, and whether the search was interrupted."""
    try:
        best, interrupted = search(strategy, trials, trials.bench.learning.settings), False
    except Interrupted:
        within = [trial for trial in trials.history if trial.within and trials.states.get(trial.key) is not None]
        best, interrupted = min(within, key=lambda trial: trial.parameters, default=trials.dense), True
    if best is not trials.dense:
        return best, interrupted
    if interrupted:
        raise KeyboardInterrupt
    raise _nothing_within(trials)


def _nothing_within(trials: Trials) -> LrzipError:
    scorer = trials.bench.scorer
    allowed = trials.floor if scorer.higher_is_better else -trials.floor
    closest = max(trials.history, key=trials.gain, default=None)
    reached = f"the best trial has {closest.scores[scorer.first]:.4g}" if closest else "no trial was possible"
    return LrzipError(
        f"No smaller network keeps {scorer.first} within {allowed:.4g} on the validation set; {reached}. Raise "
        "`--max-drop`, or tune longer with `--epochs`."
    )


def _test_scores(trials: Trials, best: Trial, test_set: Samples) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Return the metrics of the dense network and of the best one on test data."""
    variants, bench = trials.variants, trials.bench
    network = variants.rebuilt(trials.state(best), best.ranks).network
    return bench.score(variants.model, test_set), bench.score(network, test_set)
