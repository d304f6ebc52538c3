"""Sessions: plans, factors, networks, files and reports for one checkpoint or network."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from time import perf_counter

from torch import Tensor, nn

from lrzip.calibration.result import Calibration
from lrzip.core.costs import Costs
from lrzip.core.decisions import Factorize
from lrzip.core.errors import UsageError
from lrzip.core.factors import GroupFactors
from lrzip.core.layers import Keep, Layer
from lrzip.core.plan import Plan
from lrzip.core.report import Comparison, LayerResult, Report
from lrzip.core.version import __version__
from lrzip.formats.adapters import as_adapter
from lrzip.formats.live import LiveSource
from lrzip.formats.open import open_checkpoint
from lrzip.formats.outputs import compare, nbytes_of, notes_of, obstacle_of, output_format, size_on_disk, usage_of
from lrzip.formats.protocols import Checkpoint, Runnable, entry_of
from lrzip.formats.write import rewrite
from lrzip.networks.architecture import Architecture
from lrzip.networks.inputs import InputShape
from lrzip.networks.surgery import assemble
from lrzip.networks.weights import is_parameter
from lrzip.pipeline.calibrate import (
    by_checkpoint_name,
    calibrate_layers,
    calibration_summary,
    check_statistics_output,
    fit_factors,
    network_of,
    subject_of,
)
from lrzip.pipeline.decide import decide, plan_with
from lrzip.pipeline.factorize import Factorizer, factorize_all
from lrzip.pipeline.latency import costs_of, keep_slow
from lrzip.pipeline.meters import meter_of
from lrzip.pipeline.plan_file import load_plan
from lrzip.pipeline.profile import Profile, profile_of
from lrzip.pipeline.request import Request
from lrzip.pipeline.scratch import Scratch, scratch_beside
from lrzip.pipeline.setup import Setup
from lrzip.pipeline.subnormal_weights import find_subnormal_weights, subnormal_note
from lrzip.pipeline.survey import find_candidates, selected_layers
from lrzip.ranks import Candidate, Meter, RankRule

RUN_UNITS = ("macs", "latency")
"""Units of budgets that are counted in a run of the network."""


class Session:
    """Plans for one checkpoint or live network, and the factors, networks, files and reports that follow from them.

    Spectra, statistics of a calibration and the profile of a run are computed once, when they are first needed.
    """

    def __init__(
        self,
        source: Checkpoint | LiveSource,
        request: Request,
        setup: Setup | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        """Create a session; all work is done on demand.

        Args:
            source: An open checkpoint, or a live network.
            request: What to factorize, to which ranks, and how.
            setup: Architecture, calibration data and machine.
            scratch: Storage for subspaces between planning and factorizing; None if nothing will be factorized.
        """
        self.source = source
        self.request = request
        self.setup = setup or Setup()
        self._scratch = scratch
        self._calibration: Calibration | None = None
        self._start = perf_counter()
        model = self.setup.model
        self.architecture = Architecture.of(model) if model is not None else None

    @property
    def checkpoint(self) -> Checkpoint:
        """The open checkpoint.

        Raises:
            TypeError: The source is a live network.
        """
        if isinstance(self.source, LiveSource):
            raise TypeError("A live network has no file to write or report on.")
        return self.source

    @cached_property
    def profile(self) -> Profile | None:
        """A run of the network or program; None if it is not known how to run it."""
        setup = self.setup
        needed = setup.latency or setup.min_speedup is not None or self.request.unit in RUN_UNITS
        return profile_of(self.source, setup.model, setup.input_shapes, needed=needed)

    @cached_property
    def layers(self) -> Sequence[Layer | Keep]:
        """The selected layers, and all other tensors with the reasons to keep them, in file order."""
        return selected_layers(self.source, self.request, self.architecture)

    @cached_property
    def candidates(self) -> Sequence[Candidate | Keep]:
        """The selected layers with the spectra of their weights, or of outputs if calibrated, and all kept tensors."""
        calibration = self._calibrate([item for item in self.layers if isinstance(item, Layer)])
        return find_candidates(
            self.source,
            self.layers,
            self.request,
            self.setup.machine,
            statistics=calibration.planned if calibration else None,
            scratch=self._scratch,
        )

    @cached_property
    def meter(self) -> Meter | None:
        """The meter of the target's unit; None if it has none."""
        request, tensors = self.request, self.source.tensors().values()
        if request.unit is None:
            return None
        return meter_of(request.unit, tensors, request.decompositions, dtype=request.dtype, profile=self.profile)

    def plan(self, target: RankRule | Path | None = None) -> Plan:
        """Return the plan for the target of the request, or for another target with the same unit.

        Raises:
            LrzipError: No layer can be factorized, a budget cannot be met, or a plan file does not fit.
            UnknownName: A pattern matches no layer.
        """
        target = self.request.target if target is None else target
        profile = self.profile
        if isinstance(target, Path):
            plan = load_plan(self.source, target, self.request, self.architecture)
            self._calibrate([layer for decision in plan.factorize for layer in decision.group.layers])
        else:
            candidates = self.candidates
            plan = decide(self.source, candidates, replace(self.request, target=target), self.meter)
        if profile is None or self.setup.min_speedup is None:
            return plan
        return keep_slow(profile, plan, self.setup.min_speedup)

    def plan_with(self, ranks: Mapping[str, tuple[int, ...]], *, reason: str) -> Plan:
        """Return the plan with given ranks, even where they save no parameters; no spectra are computed.

        Args:
            ranks: Ranks by layer name.
            reason: Why all other selected layers are kept.
        """
        return plan_with(self.source, self.layers, ranks, self.request, reason=reason)

    def factors(self, plan: Plan) -> Iterator[tuple[Factorize, GroupFactors, float]]:
        """Yield each decision of a plan with its factors and the seconds they took, several computed at a time."""
        return factorize_all(plan, self._fit(plan)[0], self.setup.machine.progress)

    def network(self, plan: Plan, model: nn.Module | None = None) -> nn.Module:
        """Return the network with the layers of a plan replaced, and corrected if there is a calibration.

        Args:
            plan: A plan of this session.
            model: A dense network with the weights of the source, changed in place; None to build one.

        Raises:
            UsageError: The source contains no network, and no architecture is given.
        """
        if model is None:
            model = network_of(self.source, self.setup.model, self.setup.opening)
        if model is None:
            raise UsageError(f"`{self.source.path}` holds only weights. Give `model=PKG.MOD:NET`.")
        factorizer, changed = self._fit(plan)
        made = factorize_all(plan, factorizer, self.setup.machine.progress)
        return assemble(model, plan, {decision.group.name: factors for decision, factors, _ in made}, changed)

    def write(self, plan: Plan, destination: Path, dropped: Mapping[str, str]) -> Report:
        """Write the source with the layers of a plan replaced; return the report.

        Args:
            plan: A plan of this session.
            destination: File or folder, in the format that its suffix names.
            dropped: Entries of the source that are left out, with reasons.

        Raises:
            LrzipError: The output could not be written; no partial output remains.
        """
        factorizer, tensors = self._fit(plan)
        changed = by_checkpoint_name(tensors, self.source, self.architecture)
        results: list[LayerResult] = []
        if isinstance(self.checkpoint, Runnable):
            shapes = [InputShape.parse(text) for text in self.setup.input_shapes]
            self.checkpoint.compare_on(self._calibration.first_batch if self._calibration else (), shapes)
        with rewrite(destination, self.checkpoint, plan, drop=list(dropped), changed=changed) as rewriter:
            for decision, factors, seconds in factorize_all(plan, factorizer, self.setup.machine.progress):
                rewriter.put(decision, factors)
                results.append(LayerResult.of(decision, factors, seconds))
        return self.report(plan, results, output=destination, dropped=dropped, changed=tuple(changed))

    def report(
        self,
        plan: Plan,
        results: Sequence[LayerResult] = (),
        *,
        output: Path | None = None,
        dropped: Mapping[str, str] | None = None,
        changed: Sequence[str] = (),
    ) -> Report:
        """Return the report of a plan, or of the output that was written from it.

        Args:
            plan: A plan of this session.
            results: Errors and times of the layers that were factorized.
            output: File or folder that was written, if any.
            dropped: Entries of the source that are left out, with reasons.
            changed: Names of other tensors with new values.
        """
        checkpoint, calibration = self.checkpoint, self._calibration
        format_ = output_format(output, checkpoint.format) if output else None
        saved = nbytes_of(checkpoint, dropped or {}) - plan.nbytes_saved
        return Report(
            plan=plan,
            results=results,
            output=output,
            parameters_before=sum(spec.numel for spec in checkpoint.tensors().values() if is_parameter(spec)),
            nbytes_before=checkpoint.nbytes,
            nbytes_after=size_on_disk(output, format_) if output and format_ else saved,
            dropped=tuple((dropped or {}).items()),
            seconds=perf_counter() - self._start,
            version=__version__,
            costs=self._costs(plan, output if results else None),
            usage=usage_of(format_) if format_ and plan.factorize else None,
            comparison=compare(checkpoint, output) if output and results else Comparison(),
            notes=self._notes(written=output is not None),
            calibrated=calibration_summary(calibration, changed) if calibration else None,
            entry=entry_of(checkpoint),
        )

    def _notes(self, *, written: bool) -> Sequence[str]:
        notes = tuple(notes_of(self.checkpoint)) if written else ()
        slow = subnormal_note(find_subnormal_weights(self.checkpoint)) if self.setup.latency else None
        return (*notes, slow) if slow else notes

    def _calibrate(self, layers: Sequence[Layer]) -> Calibration | None:
        """Calibrate on the first call; unless the request names an objective, that of the calibration is used."""
        setup = self.setup
        if setup.calibrate is None or self._calibration:
            return self._calibration
        check_statistics_output(setup.calibration, self.source, force=setup.force)
        self._calibration = calibrate_layers(
            lambda: subject_of(self.source, setup.model, setup.opening),
            setup.calibrate,
            layers,
            setup.calibration,
            measured=self.request.objective.measured,
        )
        self.request = self.request.with_default_objective(self._calibration.objective)
        return self._calibration

    def _fit(self, plan: Plan) -> tuple[Factorizer, Mapping[str, Tensor]]:
        machine, factoring = self.setup.machine, self.request.factoring
        factorizer = Factorizer(self.source, self.request.solver, self._scratch, machine.device, factoring.seed)
        return fit_factors(factorizer, plan, self._calibration, machine.progress)

    def _costs(self, plan: Plan, output: Path | None) -> Costs | None:
        """Return the costs of a run, or None without a profile; a program is timed by running its output."""
        if self.profile is None:
            return None
        setup = self.setup
        costs = costs_of(self.profile, plan.factorize, latency=setup.latency)
        if output and setup.latency and isinstance(self.source, Runnable) and setup.model is None:
            return costs.timed(self.source.time(output, [InputShape.parse(text) for text in setup.input_shapes]))
        return costs


@contextmanager
def open_session(
    path: Path, request: Request, setup: Setup, *, output: Path | None = None, beside: Path | None = None
) -> Iterator[Session]:
    """Open a checkpoint, and yield a session over it.

    Args:
        path: File or folder.
        request: What to factorize, to which ranks, and how.
        setup: Architecture, calibration data and machine.
        output: Output, whose format may not hold all structures.
        beside: Output in whose folder temporary data is kept; None if nothing is factorized.
    """
    with as_adapter(open_checkpoint(path, key=setup.opening.key, trust=setup.opening.trust)) as checkpoint:
        if output is not None:
            request = replace(request, obstacle=obstacle_of(output_format(output, checkpoint.format)))
        if beside is None:
            yield Session(checkpoint, request, setup)
            return
        with scratch_beside(beside) as scratch:
            yield Session(checkpoint, request, setup, scratch)
