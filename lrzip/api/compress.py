"""Compress: a checkpoint in, a smaller one out."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter

from torch import Tensor, nn

from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.errors import UsageError
from lrzip.core.progress import Progress, silent
from lrzip.core.report import LayerResult, Report
from lrzip.core.version import __version__
from lrzip.formats import FORMATS
from lrzip.formats.files.atomic import check_output
from lrzip.formats.open import open_checkpoint
from lrzip.formats.outputs import check_program, compare, default_output, not_carried, output_format, size_on_disk
from lrzip.formats.protocols import Guarded, Runnable
from lrzip.formats.write import rewrite
from lrzip.networks.architecture import Architecture
from lrzip.networks.inference import is_parameter
from lrzip.networks.inputs import InputShape
from lrzip.pipeline.calibrate import by_file_names, calibration_summary, fit_calibrated, look_at_inputs
from lrzip.pipeline.decide import load_plan, make_plan
from lrzip.pipeline.factorize import Work, factorize_all
from lrzip.pipeline.latency import costs_of, keep_slow
from lrzip.pipeline.profile import profile_of
from lrzip.pipeline.request import meter_for, request_of, rule_of, solver_of, with_objective
from lrzip.pipeline.scratch import scratch_beside
from lrzip.pipeline.survey import check_device, selected


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
    decomposition: str = "svd",
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

    Each replaced layer `x` is stored as the weights of an `nn.Sequential`: `x.0.weight`, `x.1.weight`, …, with the bias
    at the last. All other tensors and entries are copied as they are. In an ONNX model a node for each of these takes
    the place of each node that uses the layer; what onnxruntime computes before and after is compared where it is
    installed.

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
        decomposition: `svd`, or `tucker` for convolutions with a kernel: three stages, and a rank each of output and
            input channels. Layers that it does not take go to the SVD.
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
        *(rule, layers or {}, only, skip, round_to, dtype),
        decomposition=decomposition,
        force_factorize=force_factorize,
        objective=objective,
    )
    unit = request.rule.unit if request else None
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
            work, others = fit_calibrated(Work(checkpoint, solver, scratch, device, seed), decisions, seen, progress)
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
            version=__version__,
            differences=differences,
            costs=costs,
            usage=FORMATS[format_].usage if results else None,
            not_compared=not_compared,
            calibrated=calibration_summary(seen, changed) if seen else None,
        )
