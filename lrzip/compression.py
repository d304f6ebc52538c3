"""Compress: a checkpoint in, a smaller one out."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from pathlib import Path
from time import perf_counter

import torch
from torch import Generator, Tensor, nn

import lrzip
from lrzip.calibration.calibrator import Calibration, Network, Stored, Subject
from lrzip.calibration.calibrator import calibrate as run_calibration
from lrzip.calibration.settings import CalibrationSettings
from lrzip.calibration.stored import holds_statistics, load_statistics, save_statistics
from lrzip.costs import Profile, costs_of, keep_slow, meter_of, profile_of
from lrzip.errors import LrzipError, NotCompared, UsageError
from lrzip.factors import Factors
from lrzip.files.atomic import check_output
from lrzip.formats import (
    FORMATS,
    Bringing,
    Checkpoint,
    Guarded,
    Runnable,
    Source,
    Watchable,
    not_carried,
    open_checkpoint,
    output_format,
    rewrite,
)
from lrzip.inference import is_parameter, match
from lrzip.inputs import InputShape
from lrzip.layers import FACTORIZABLE_DTYPES, Keep, Layer
from lrzip.linalg.svd import METHODS, Solver
from lrzip.loading import load_into
from lrzip.modules import Architecture
from lrzip.moments import Moments, Statistics
from lrzip.objectives import DEFAULT_OBJECTIVE, objective_of
from lrzip.parallel import map_in_order
from lrzip.plan import Factorize, Plan
from lrzip.planning import (
    Request,
    check_device,
    decomposition_of,
    is_finite,
    load_plan,
    make_plan,
    memory_of,
    read_weight,
    selected,
)
from lrzip.progress import Progress, silent
from lrzip.ranks import RankRule, parse_rule
from lrzip.ranks.budget import Budget, Meter
from lrzip.report import Calibrated, Difference, LayerResult, Report
from lrzip.scratch import Scratch, scratch_beside
from lrzip.surgery import assemble


def compress(
    path: str | Path,
    output: str | Path | None = None,
    *,
    energy: float | None = None,
    ratio: float | None = None,
    rank: int | None = None,
    vbmf: bool = False,
    budget: str | None = None,
    rank_rule: str | None = None,
    plan: str | Path | None = None,
    objective: str | None = None,
    layers: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    round_to: int | None = None,
    force_factorize: bool = False,
    svd: str = "auto",
    oversample: int = 10,
    power_iterations: int = 2,
    tolerance: float = 1e-3,
    dtype: str = "keep",
    model: nn.Module | None = None,
    calibrate: str | Path | Tensor | None = None,
    calibration: CalibrationSettings | None = None,
    input_shapes: Sequence[str] = (),
    latency: bool = False,
    min_speedup: float | None = None,
    key: str | None = None,
    trust: bool = False,
    device: str = "cpu",
    seed: int = 0,
    keep_optimizer: bool = False,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Report:
    """Replace layers of a checkpoint by low-rank chains and write the result.

    Each replaced layer `x` is stored as the weights of an `nn.Sequential`: `x.0.weight`, `x.1.weight`, `x.1.bias`. All
    other tensors and entries are copied as they are. In an ONNX model two nodes take the place of each node that uses
    the layer; what onnxruntime computes before and after is compared where it is installed.

    Args:
        path: A file of torch.save, torch.export, safetensors or ONNX, or a folder, sharded or of transformers.
        output: Where to write; by default `model.lrzip.pt` beside `model.pt`. The suffix names the format.
        energy: The smallest rank of each layer that keeps this share of Σσ², in (0, 1].
        ratio: Divide each layer's parameters by this, above 1.
        rank: One rank for all layers.
        vbmf: Keep what stands out from noise, by variational Bayes.
        budget: The ranks of all layers with the least predicted loss within `params=50%` or `1.2M` of parameters,
            `nbytes=10MB` of tensors, `macs=40%` of a run's multiply-accumulates, or `latency=60%` or `5ms` of its time
            on this machine, for the whole checkpoint.
        rank_rule: Any of the rules above by name: `energy:0.8`, `ratio:4`, `rank:16`, `vbmf`, `budget:params=50%`.
        plan: A plan file that decides instead of a rule. Exactly one of these seven is needed.
        objective: What predicts the loss of a rank: `relative-energy`, `energy`, `log-energy`, `scaled-log-energy`,
            `operator-norm`, `fisher`, or `sensitivity`, for which the network runs with some ranks of each layer. By
            default `fisher` for calibrated networks, else `scaled-log-energy`.
        layers: Rules of some layers by glob: `energy:0.8`, `ratio:4`, `rank:16` or `keep`; the last match wins.
        only: Globs of the layers to take. A name in full also settles doubts about what a layer is.
        skip: Globs of the layers to leave.
        round_to: Round ranks up to a multiple, where that still saves; by default 8 for convolutions of ONNX files,
            since runtimes block channels that way, and 1 elsewhere.
        force_factorize: Replace layers also where that saves nothing, to check a program at full rank.
        svd: `auto`, `exact` (LAPACK), `gram`, or a sketch: `randomized`, `subspace`, `srft`, `row-extraction` or
            `single-pass`.
        oversample: Sketch vectors beyond the rank.
        power_iterations: Of a sketch.
        tolerance: By which share a layer's error may exceed the best possible one of its rank. It is checked, and what
            misses it is computed exactly; infinite leaves sketches as they are.
        dtype: Of the factors: `keep`, `float32`, `float64`, `float16` or `bfloat16`.
        model: The network that the checkpoint belongs to, which says what its layers are; its weights do not matter.
        calibrate: Examples of what the network gets, without labels: a tensor (n, …), or what `lrzip.data.read_data`
            takes. Ranks and factors then follow from what the layers make of them. It takes the network, or a program.
        calibration: How many examples, and what they may change.
        input_shapes: One for each input of the network, such as `1,3,32,32`, to tell what a run of it costs.
        latency: Measure dense against factorized on this machine.
        min_speedup: Leave layers whole whose factors do not run so many times faster on this machine.
        key: Which entry of a nested file holds the weights.
        trust: Allow what would run code from the file.
        device: Where to compute.
        seed: Of all sketches: same seed, same bytes.
        keep_optimizer: Keep an optimizer state, though it no longer fits.
        dry_run: Plan only; write nothing.
        force: Overwrite an existing output.
        progress: Called before each layer.

    Raises:
        UsageError: The options contradict each other or are out of range.
        LrzipError: Anything else that could not be done; nothing is written.
    """
    start = perf_counter()
    source = Path(path)
    rule = rule_of(
        {
            "energy": energy,
            "ratio": ratio,
            "rank": rank,
            "vbmf": vbmf or None,
            "budget": budget,
            "rank-rule": rank_rule,
            "plan": plan,
        }
    )
    request = request_of(
        rule, layers or {}, only, skip, round_to, dtype, force_factorize=force_factorize, objective=objective
    )
    unit = request.rule.unit if request and isinstance(request.rule, Budget) else None
    if unit and (force_factorize or min_speedup is not None):
        option = "--force-factorize" if force_factorize else "--min-speedup"
        raise UsageError(f"`{option}` overrides what a budget decides. Take one of them.")
    solver = solver_of(svd, oversample, power_iterations, tolerance)
    destination = Path(output) if output is not None else default_output(source)
    check_device(device)
    architecture = Architecture.of(model) if model else None
    if calibration and calibrate is None:
        raise UsageError("How to calibrate says nothing without examples. Give them with `--calibrate`.")
    if not dry_run:
        check_output(destination, source, force=force)
    with ExitStack() as resources:
        checkpoint = resources.enter_context(open_checkpoint(source, key=key, trust=trust))
        format_ = output_format(destination, checkpoint.format)
        check_program(checkpoint, format_, destination, force_factorize=force_factorize)
        if isinstance(checkpoint, Guarded) and not dry_run:
            checkpoint.refuse_replacing(format_)
        costs_asked = latency or min_speedup is not None or unit in ("macs", "latency")
        found = profile_of(checkpoint, model, input_shapes, needed=costs_asked)
        scratch = None if dry_run else resources.enter_context(scratch_beside(destination))
        look = partial(
            look_at_inputs,
            checkpoint,
            model,
            calibrate,
            calibration,
            measured=bool(request and request.objective.measured),
            key=key,
            trust=trust,
            force=force,
        )
        if request:
            seen = look(partial(selected, checkpoint, request, architecture))
            if seen and not objective:
                request = with_objective(request, seen.objective)
            decisions = make_plan(
                checkpoint,
                request,
                solver,
                device=device,
                progress=progress,
                architecture=architecture,
                scratch=scratch,
                meter=meter_for(request, checkpoint, solver, found),
                statistics=seen.planned if seen else None,
            )
        else:
            decisions = load_plan(
                checkpoint,
                Path(str(plan)),
                solver,
                architecture=architecture,
                force_factorize=force_factorize,
            )
            seen = look(lambda: [decision.layer for decision in decisions.factorize])
        if found and min_speedup is not None:
            decisions = keep_slow(found, decisions, min_speedup)
        lost = not_carried(format_, checkpoint, optimizer=bool(decisions.factorize) and not keep_optimizer)
        results: list[LayerResult] = []
        changed: Mapping[str, Tensor] = {}
        if scratch:
            work, others = calibrated(Work(checkpoint, solver, scratch, device, seed), decisions, seen, progress)
            changed = by_file_names(others, checkpoint, architecture)
            with rewrite(destination, checkpoint, decisions, drop=list(lost), changed=changed) as rewriter:
                for decision, factors, seconds in factorize_all(decisions, work, progress):
                    rewriter.put(decision.layer, factors)
                    results.append(LayerResult.of(decision, factors, seconds))
        differences, not_compared = compare(checkpoint, destination) if results else ((), None)
        costs = costs_of(found, decisions.factorize, latency=latency) if found else None
        if costs and results and latency and isinstance(checkpoint, Runnable) and not model:
            costs = costs.timed(checkpoint.time(destination, [InputShape.parse(text) for text in input_shapes]))
        return Report(
            plan=decisions,
            results=results,
            output=None if dry_run else destination,
            parameters_before=sum(spec.numel for spec in checkpoint.tensors().values() if is_parameter(spec)),
            nbytes_before=checkpoint.nbytes,
            nbytes_after=checkpoint.nbytes - decisions.nbytes_saved if dry_run else size_on_disk(destination, format_),
            dropped=tuple(lost.items()),
            seconds=perf_counter() - start,
            version=lrzip.__version__,
            differences=differences,
            costs=costs,
            usage=FORMATS[format_].usage if results else None,
            not_compared=not_compared,
            calibrated=told(seen, changed) if seen else None,
        )


def default_output(source: Path) -> Path:
    """Return `model.lrzip.pt` for `model.pt`, and `model.lrzip` for a folder `model`."""
    path = source if source.name else source.absolute()
    return path.with_name(f"{path.name}.lrzip") if path.is_dir() else path.with_name(f"{path.stem}.lrzip{path.suffix}")


def check_program(checkpoint: Checkpoint, format_: str, destination: Path, *, force_factorize: bool) -> None:
    """Refuse to make a program of weights, to name one like something else, and to force what weights cannot have.

    Raises:
        UsageError: In either case.
    """
    suffixes = FORMATS[format_].suffixes
    if FORMATS[format_].is_program and format_ != checkpoint.format:
        raise UsageError(f"`{checkpoint.path}` holds weights and no program, as `{destination}` would. Name another.")
    if FORMATS[format_].is_program and destination.suffix and destination.suffix.lower() not in suffixes:
        wanted = " or ".join(suffixes)
        raise UsageError(f"`{checkpoint.path}` is a program, so the name of `{destination}` must end in {wanted}.")
    if force_factorize and not FORMATS[format_].is_program:
        raise UsageError(
            "`--force-factorize` takes a file with a program, such as ONNX: "
            "chains that are not smaller are not found among weights alone."
        )


def compare(checkpoint: Checkpoint, output: Path) -> tuple[Sequence[Difference], str | None]:
    """Return by how much outputs changed, and why that is not known where it is not."""
    try:
        return checkpoint.compare(output), None
    except NotCompared as error:
        return (), str(error)


def size_on_disk(path: Path, format_: str) -> int:
    """Return the bytes of what was written in a format: a file, with what belongs to it, or a folder's weight files."""
    return sum(file.stat().st_size for file in FORMATS[format_].files(path))


@dataclass(frozen=True)
class Work:
    """What pass 2 does for each decision: read a layer, and factorize it, by its inputs if their moments are known.

    Layers of which there are factors already, by name in `fitted`, get these.
    """

    checkpoint: Source
    solver: Solver
    scratch: Scratch | None
    device: str
    seed: int
    statistics: Statistics = field(default_factory=dict)
    fitted: Mapping[str, Factors] = field(default_factory=dict)

    def load(self, decision: Factorize) -> Tensor:
        """Read the weight of a layer."""
        return read_weight(self.checkpoint, decision.layer, self.device)

    def factorize(self, decision: Factorize, weight: Tensor) -> tuple[Factors, float]:
        """Return the factors of a layer, and the seconds they took."""
        start = perf_counter()
        layer = decision.layer
        if layer.name in self.fitted:
            return self.fitted[layer.name], perf_counter() - start
        factors = self.fit(decision, weight, self.statistics.get(layer.name))
        return factors, perf_counter() - start

    def fit(self, decision: Factorize, weight: Tensor, moments: Moments | None) -> Factors:
        """Return the factors of a weight in the place of a layer's."""
        layer = decision.layer
        if not is_finite(weight):
            raise LrzipError(f"`{layer.name}` contains NaN or Inf. Take it out of the plan.")
        factors = decomposition_of(decision.decomposition, self.solver).factorize(
            layer,
            weight,
            decision.ranks,
            dtype=getattr(torch, decision.dtype),
            generator=_generator(self.seed, layer),
            subspaces=self.scratch.take(layer.name, self.device) if self.scratch and not moments else (),
            moments=moments,
        )
        if not isfinite(factors.error):
            raise LrzipError(f"`{layer.name}` overflows in {decision.dtype}. Use `--dtype bfloat16` or `--skip` it.")
        return factors


def look_at_inputs(
    checkpoint: Checkpoint,
    model: nn.Module | None,
    examples: str | Path | Tensor | None,
    settings: CalibrationSettings | None,
    layers: Callable[[], Sequence[Layer | Keep]],
    *,
    measured: bool,
    key: str | None,
    trust: bool,
    force: bool,
) -> Calibration | None:
    """Return what examples do in the network of a checkpoint and in some of its layers; None without examples.

    Raises:
        UsageError: There is no network to run.
    """
    if examples is None:
        return None
    chosen, found = settings or CalibrationSettings(), [item for item in layers() if isinstance(item, Layer)]
    if isinstance(examples, str | Path) and holds_statistics(Path(examples)):
        if chosen.corrections or chosen.save or chosen.reconstruct:
            raise UsageError(f"`{examples}` is what a calibration saw, so there is nothing to run, correct or save.")
        return load_statistics(Path(examples), found)
    if chosen.save:
        check_output(chosen.save, checkpoint.path, force=force)
    subject = subject_of(checkpoint, model, key=key, trust=trust)
    seen = run_calibration(subject, examples, found, chosen, measured=measured)
    if chosen.save:
        save_statistics(seen, chosen.save)
    return seen


def calibrated(
    work: Work, plan: Plan, seen: Calibration | None, progress: Progress
) -> tuple[Work, Mapping[str, Tensor]]:
    """Return the work with what a calibration says of it, and the other tensors that change with the factors.

    Raises:
        UsageError: A reconstruction is asked for, and there is no network to train.
    """
    if seen is None:
        return work, {}
    decisions = {decision.layer.name: decision for decision in plan.factorize}
    fitted = seen.fit(
        [decision.layer for decision in plan.factorize],
        lambda layer, weight, moments: work.fit(decisions[layer.name], weight, moments),
    )
    work = replace(work, statistics=seen.statistics, fitted=fitted.factors)
    if not seen.settings.reconstruct:
        return work, fitted.tensors
    if seen.network is None or seen.samples is None:
        raise UsageError("`--reconstruct` trains a network, so it needs `--model PKG.MOD:NET` and examples.")
    from lrzip.reconstruction import reconstruct  # which takes the packages that train

    factors = {decision.layer.name: found for decision, found, _ in factorize_all(plan, work, progress)}
    steps, seed = seen.settings.reconstruct, seen.settings.seed
    done = reconstruct(seen.network, plan, factors, fitted.tensors, seen.samples, steps=steps, seed=seed)
    return replace(work, fitted=done.factors), done.tensors


def told(seen: Calibration, changed: Iterable[str]) -> Calibrated:
    """Return what a report says of a calibration."""
    return Calibrated(seen.examples, seen.count, str(seen.corrections), tuple(changed), dict(seen.scarce))


def subject_of(checkpoint: Checkpoint, model: nn.Module | None, *, key: str | None, trust: bool) -> Subject:
    """Return what a calibration runs: the network with the weights of the checkpoint, or the program in it.

    Raises:
        UsageError: There is neither.
    """
    network = network_in(checkpoint, model, key=key, trust=trust)
    if network is not None:
        return Network(network.eval())
    if isinstance(checkpoint, Watchable):
        return Stored(checkpoint)
    raise UsageError(
        f"`--calibrate` runs the network, and `{checkpoint.path}` holds only weights. Give `--model PKG.MOD:NET`."
    )


def network_in(checkpoint: Checkpoint, model: nn.Module | None, *, key: str | None, trust: bool) -> nn.Module | None:
    """Return a network with the weights of a checkpoint: a copy of the model, or what the file brings, if it does.

    A program is none, since its modules only hold tensors.
    """
    if model is not None:
        return load_into(copy.deepcopy(model), checkpoint.path, key=key, trust=trust)
    if isinstance(checkpoint, Bringing) and not FORMATS[checkpoint.format].is_program:
        return checkpoint.network()
    return None


def applied(model: nn.Module, plan: Plan, work: Work, seen: Calibration | None, progress: Progress) -> nn.Module:
    """Replace the layers of a plan by their factors, in place, with what a calibration makes up for.

    Returns:
        The network, or the chain where that stands for the network itself.
    """
    work, changed = calibrated(work, plan, seen, progress)
    made = {decision.layer.name: factors for decision, factors, _ in factorize_all(plan, work, progress)}
    return assemble(model, plan, made, changed)


def by_file_names(
    tensors: Mapping[str, Tensor], checkpoint: Checkpoint, architecture: Architecture | None
) -> Mapping[str, Tensor]:
    """Return tensors of a network by their names in its checkpoint."""
    if architecture is None or not tensors:
        return tensors
    names = match(checkpoint.path, checkpoint.tensors(), architecture)
    return {names[name].name: tensor for name, tensor in tensors.items()}


def factorize_all(plan: Plan, work: Work, progress: Progress) -> Iterator[tuple[Factorize, Factors, float]]:
    """Pass 2: yield the factors of the layers of a plan, several in work at a time."""
    results = map_in_order(
        plan.factorize,
        work.load,
        work.factorize,
        nbytes=lambda decision: memory_of(decision.layer),
        device=work.device,
    )
    for index, decision in enumerate(plan.factorize):
        progress("factorizing", decision.layer, index, len(plan.factorize))
        yield decision, *next(results)


def _generator(seed: int, layer: Layer) -> Generator:
    """Return a source of randomness of this layer alone, so that no result depends on the order of layers."""
    digest = hashlib.sha256(f"{seed}:{layer.weight.name}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def rule_of(given: Mapping[str, object]) -> RankRule | None:
    """Return the one rule that is given by name, or None where it is a plan file."""
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        got = " and ".join(f"`--{name}`" for name in named) or "none"
        known = [f"`--{name}`" for name in given]
        raise UsageError(f"Give exactly one of {', '.join(known[:-1])} and {known[-1]}, got {got}.")
    (name,) = named
    if name == "plan":
        return None
    if name == "rank-rule":
        return parse_rule(str(given[name]))
    return parse_rule(name if given[name] is True else f"{name}:{given[name]}")


def request_of(
    rule: RankRule | None,
    layers: Mapping[str, str],
    only: Sequence[str],
    skip: Sequence[str],
    round_to: int | None,
    dtype: str,
    *,
    force_factorize: bool = False,
    objective: str | None = None,
) -> Request | None:
    """Return what is asked of the layers, or None where a plan file decides."""
    if dtype != "keep" and dtype not in FACTORIZABLE_DTYPES:
        raise UsageError(f"`dtype` must be keep, {', '.join(FACTORIZABLE_DTYPES)}, got {dtype}.")
    if round_to is not None and round_to < 1:
        raise UsageError(f"`round-to` must be at least 1, got {round_to}.")
    if rule is None:
        if layers or only or skip or round_to is not None or dtype != "keep" or objective:
            raise UsageError("`--plan` decides on every layer. Edit the plan instead of adding other rules.")
        return None
    rules = {pattern: None if text == "keep" else parse_rule(text) for pattern, text in layers.items()}
    if any(isinstance(own, Budget) for own in rules.values()):
        raise UsageError("`--layer` takes no budget: there is one for all layers. Give it with `--budget`.")
    made = Request(
        rule=rule,
        rules=rules,
        only=only,
        skip=skip,
        round_to=round_to,
        dtype=None if dtype == "keep" else dtype,
        force_factorize=force_factorize,
    )
    return with_objective(made, objective or DEFAULT_OBJECTIVE)


def with_objective(request: Request, name: str) -> Request:
    """Return the same request with another objective."""
    objective, rule = objective_of(name), request.rule
    own = replace(rule, objective=objective) if isinstance(rule, Budget) else rule
    return replace(request, rule=own, objective=objective)


def meter_for(request: Request, checkpoint: Source, solver: Solver, found: Profile | None) -> Meter | None:
    """Return what the budget of a request counts, if it has one."""
    if not isinstance(request.rule, Budget):
        return None
    decomposition = decomposition_of(request.decomposition, solver)
    return meter_of(request.rule.unit, checkpoint.tensors().values(), decomposition, dtype=request.dtype, found=found)


def solver_of(svd: str, oversample: int, power_iterations: int, tolerance: float) -> Solver:
    """Return the solver that options ask for."""
    if svd not in METHODS:
        raise UsageError(f"`svd` must be one of {', '.join(METHODS)}, got {svd}.")
    if oversample < 0 or power_iterations < 0:
        raise UsageError("`oversample` and `power-iterations` must be at least 0.")
    if not tolerance > 0:
        raise UsageError(f"`tolerance` must be above 0, or inf, got {tolerance:g}.")
    return Solver(svd, oversample, power_iterations, tolerance)
