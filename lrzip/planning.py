"""Pass 1: look at every layer, one at a time, and let the rules choose."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from pathlib import Path

import torch
from torch import Tensor

from lrzip.decompositions import DEFAULT_DECOMPOSITION, Decomposition, Decompositions, decomposition_of
from lrzip.errors import LrzipError, PlanMismatch, UsageError
from lrzip.formats import Source
from lrzip.layers import Keep, Layer
from lrzip.linalg.gram import largest_element
from lrzip.linalg.svd import Solver
from lrzip.modules import Architecture
from lrzip.moments import Statistics
from lrzip.objectives import DEFAULT_OBJECTIVE, OBJECTIVES, Objective
from lrzip.parallel import map_in_order
from lrzip.plan import Choice, Factorize, Plan, Spent, fingerprint, read_plan
from lrzip.progress import Progress
from lrzip.ranks import Candidate, RankRule
from lrzip.ranks.budget import Budget, Meter
from lrzip.scratch import Scratch
from lrzip.selection import rule_for, select
from lrzip.spectrum import Spectrum


@dataclass(frozen=True)
class Request:
    """What a user asks of all layers.

    Attributes:
        rule: The rule for layers that no pattern of `rules` names.
        rules: By pattern, the rule for some layers, or None to keep them; the last match wins.
        only: Patterns of the layers to take.
        skip: Patterns of the layers to leave.
        round_to: Ranks are rounded up to a multiple of it, where that still saves; None for that of each layer.
        dtype: Of the factors, or None for that of each layer.
        decomposition: Registered name; layers that it does not take go to the default one.
        force_factorize: Replace layers also where that saves nothing.
        objective: What the loss of a rank is predicted by, where singular values are looked at.
    """

    rule: RankRule
    rules: Mapping[str, RankRule | None]
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    round_to: int | None = None
    dtype: str | None = None
    decomposition: str = DEFAULT_DECOMPOSITION
    force_factorize: bool = False
    objective: Objective = OBJECTIVES[DEFAULT_OBJECTIVE]

    def rule_of(self, layer: Layer) -> RankRule | None:
        """Return the rule of a layer, or None to keep it."""
        return rule_for(layer, self.rules, self.rule)


def make_plan(
    checkpoint: Source,
    request: Request,
    solver: Solver,
    *,
    device: str,
    progress: Progress,
    architecture: Architecture | None = None,
    scratch: Scratch | None = None,
    meter: Meter | None = None,
    statistics: Statistics | None = None,
) -> Plan:
    """Choose ranks for the layers of a checkpoint.

    Args:
        checkpoint: What to look at.
        request: What is asked of its layers.
        solver: How factors will be computed.
        device: Where to compute.
        progress: Called before each layer.
        architecture: Of the network, where it is known.
        scratch: Where subspaces are kept that the factors can be made of. None if there will be no factors.
        meter: Of a budget, which needs it.
        statistics: Of the inputs of layers, by which then singular values are those of what layers make of them.

    Raises:
        LrzipError: It has no layer that can be factorized, or a budget cannot be met.
        UnknownName: A pattern matches nothing.
    """
    seen = look_at(
        checkpoint,
        request,
        solver,
        device=device,
        progress=progress,
        architecture=architecture,
        scratch=scratch,
        statistics=statistics,
    )
    return decide(checkpoint, seen, request, Decompositions(request.decomposition, solver), meter)


def look_at(
    checkpoint: Source,
    request: Request,
    solver: Solver,
    *,
    device: str,
    progress: Progress,
    architecture: Architecture | None = None,
    scratch: Scratch | None = None,
    statistics: Statistics | None = None,
) -> Sequence[Candidate | Keep]:
    """Return the layers with what their rules need to know, and what stays whole; arguments as for `make_plan`."""
    decompositions = Decompositions(request.decomposition, solver)
    items = selected(checkpoint, request, architecture)
    if statistics is not None:
        items = [item if isinstance(item, Keep) else _reached(item, statistics) for item in items]

    def look(candidate: Candidate, weight: Tensor) -> tuple[Spectrum, ...]:
        rule = request.rule_of(candidate.layer)
        if not (rule and rule.needs_spectra):
            return ()
        if statistics is not None:
            layer = candidate.layer
            return decompositions.of(layer).spectra(layer, weight, statistics[layer.name])
        return _spectra(candidate, weight, rule, decompositions.of(candidate.layer), scratch)

    seen: list[Candidate | Keep] = []
    for item in survey(checkpoint, items, decompositions, look, device=device, progress=progress):
        rule = request.rule_of(item.layer) if isinstance(item, Candidate) else None
        seen.append(item if rule or isinstance(item, Keep) else _keep(item.layer, "kept by `--layer`"))
    return seen


def selected(checkpoint: Source, request: Request, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
    """Return the layers of a checkpoint that a request takes, and what stays whole.

    Raises:
        LrzipError: It has no layer that can be factorized.
    """
    found = checkpoint.layers(architecture)
    refuse_if_hopeless(checkpoint, found)
    return select(found, only=request.only, skip=request.skip, named=list(request.rules))


def _reached(layer: Layer, statistics: Statistics) -> Layer | Keep:
    if layer.name in statistics:
        return layer
    return _keep(layer, "the calibration does not reach it")


def decide(
    checkpoint: Source,
    seen: Sequence[Candidate | Keep],
    request: Request,
    decompositions: Decompositions,
    meter: Meter | None = None,
) -> Plan:
    """Let the rules choose for layers that were looked at; a budget comes last and takes the others as they are.

    Raises:
        LrzipError: A budget cannot be met.
    """
    groups: dict[RankRule, list[Candidate]] = {request.rule: []}
    for candidate in (item for item in seen if isinstance(item, Candidate)):
        rule = request.rule_of(candidate.layer)
        assert rule, "what no rule is for is kept"
        groups.setdefault(rule, []).append(candidate)
    decided: dict[str, Factorize | Keep] = {}
    spent: Spent | None = None
    for rule, candidates in sorted(groups.items(), key=lambda group: isinstance(group[0], Budget)):
        if isinstance(rule, Budget):
            assert meter, "a budget needs a meter"
            ranks, spent = rule.spend(candidates, meter, saved=_saved(decided, meter), round_to=request.round_to)
        else:
            ranks = rule.choose(candidates)
        for candidate in candidates:
            name = candidate.layer.name
            decided[name] = _decide(candidate, ranks.get(name), rule, request, decompositions)
    decisions = [item if isinstance(item, Keep) else decided[item.layer.name] for item in seen]
    return replace(_plan(checkpoint, decisions), budget=spent)


def load_plan(
    checkpoint: Source,
    path: Path,
    solver: Solver,
    *,
    architecture: Architecture | None = None,
    force_factorize: bool = False,
) -> Plan:
    """Return the plan of a file, made for this checkpoint; `force_factorize` takes ranks that save nothing.

    Raises:
        PlanMismatch: It is malformed, or does not fit; the first mismatch is named.
    """
    file = read_plan(path)
    mismatch = file.mismatch(checkpoint.tensors())
    if mismatch:
        raise PlanMismatch(
            f"`{path}` does not fit `{checkpoint.path}`: {mismatch}. Make a new plan with `--dry-run --save-plan`."
        )
    decisions: list[Factorize | Keep] = []
    for item in checkpoint.layers(architecture):
        tensor = item.weight if isinstance(item, Layer) else item.tensor
        if tensor.name not in file.choices:
            decisions.append(_keep(item, f"not in `{path}`") if isinstance(item, Layer) else item)
            continue
        layer = item if isinstance(item, Layer) else item.insist
        if layer is None:
            reason = item.reason if isinstance(item, Keep) else ""
            raise PlanMismatch(f"`{path}` names `{tensor.name}`, which is kept: {reason}. Take it out of the plan.")
        decisions.append(_chosen(layer, file.choices[tensor.name], solver, path, force_factorize))
    return _plan(checkpoint, decisions)


def survey(
    checkpoint: Source,
    items: Sequence[Layer | Keep],
    decompositions: Decompositions,
    look: Callable[[Candidate, Tensor], tuple[Spectrum, ...]],
    *,
    device: str,
    progress: Progress,
) -> Iterator[Candidate | Keep]:
    """Yield the layers of a checkpoint as candidates with the spectra that `look` finds, several in work at a time."""
    layers = [item for item in items if isinstance(item, Layer)]

    def examine(layer: Layer, weight: Tensor) -> Candidate | Keep:
        decomposition = decompositions.of(layer)
        reason = decomposition.refuse(layer) or (None if is_finite(weight) else "contains NaN or Inf")
        candidate = candidate_of(layer, decomposition)
        return _keep(layer, reason) if reason else replace(candidate, spectra=look(candidate, weight))

    results = map_in_order(
        layers, lambda layer: read_weight(checkpoint, layer, device), examine, nbytes=memory_of, device=device
    )
    index = 0
    for item in items:
        if isinstance(item, Keep):
            yield item
            continue
        progress("reading", item, index, len(layers))
        index += 1
        yield next(results)


def _spectra(
    candidate: Candidate, weight: Tensor, rule: RankRule, decomposition: Decomposition, scratch: Scratch | None
) -> tuple[Spectrum, ...]:
    """Return the spectra of a layer, as exact as its rule needs them.

    Where factors will be made, vectors come along at little cost, and the factors then cost one product.
    """
    layer = candidate.layer
    rank = candidate.break_even_rank
    subspaces = decomposition.subspaces(layer, weight, rank) if scratch and rank else ()
    if scratch:
        scratch.put(layer.name, subspaces)
    spectra = tuple(Spectrum.of(subspace) for subspace in subspaces)
    settled = bool(spectra) and rule.settled(replace(candidate, spectra=spectra))
    return spectra if settled else decomposition.spectra(layer, weight)


def is_finite(weight: Tensor) -> bool:
    """Tell whether all elements are finite, without a mask as large as the weight."""
    return largest_element(weight) < inf


def read_weight(checkpoint: Source, layer: Layer, device: str) -> Tensor:
    """Return a layer's weight on a device, in the dtype in which it is stored."""
    return checkpoint.read(layer.weight.name).to(device)


def memory_of(layer: Layer) -> int:
    """Return the bytes that a layer's weight takes in float32."""
    return 4 * layer.weight.numel


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or that is not there."""
    try:
        torch.zeros(1, device=device).item()  # which the device `meta` does not have
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"The device `{device}` cannot be used: {reason[:120]}.") from error


def refuse_if_hopeless(checkpoint: Source, found: Sequence[Layer | Keep]) -> None:
    """Raise an error if nothing in a checkpoint could ever be factorized, with the commonest reason."""
    kept = [item for item in found if isinstance(item, Keep) and item.insist is None]
    if len(kept) < len(found):
        return
    reasons = [item.reason for item in kept]
    commonest = f"most are kept as {max(set(reasons), key=reasons.count)}" if reasons else "it has no tensors"
    raise LrzipError(f"`{checkpoint.path}` has no layer that can be factorized: {commonest}. See `lrzip analyze`.")


def candidate_of(layer: Layer, decomposition: Decomposition, spectra: tuple[Spectrum, ...] = ()) -> Candidate:
    """Return a layer as rules see it."""
    return Candidate(layer, decomposition.max_ranks(layer), _parameters(decomposition, layer), spectra)


def _parameters(decomposition: Decomposition, layer: Layer) -> Callable[[tuple[int, ...]], int]:
    return lambda ranks: sum(prod(stage.shape) for stage in decomposition.blueprint(layer, ranks))


def _saved(decided: Mapping[str, Factorize | Keep], meter: Meter) -> int:
    """Return what decisions save, as a budget counts it."""
    chains = [decision for decision in decided.values() if isinstance(decision, Factorize)]
    return sum(meter.cost(chain.layer, None) - meter.cost(chain.layer, chain.ranks) for chain in chains)


def _decide(
    candidate: Candidate,
    ranks: tuple[int, ...] | None,
    rule: RankRule,
    request: Request,
    decompositions: Decompositions,
) -> Factorize | Keep:
    layer = candidate.layer
    break_even = f"break-even is {_listed(candidate.equal(candidate.break_even_rank))}"
    if ranks is None:
        return _keep(layer, f"kept by {rule}" if isinstance(rule, Budget) else f"no rank meets {rule}; {break_even}")
    if not (candidate.saves(ranks) or request.force_factorize):
        return _keep(layer, f"rank {_listed(ranks)} saves nothing; {break_even}")
    if not isinstance(rule, Budget):  # which has rounded its ranks itself
        ranks = _rounded(candidate, ranks, request)
    stages, name = decompositions.of(layer).blueprint(layer, ranks), decompositions.name_for(layer)
    dtype = request.dtype or layer.weight.dtype
    return Factorize(layer, name, ranks, stages, dtype, _predicted(candidate, ranks, request))


def _rounded(candidate: Candidate, ranks: tuple[int, ...], request: Request) -> tuple[int, ...]:
    """Return ranks rounded up to a multiple, or to the largest there are, where that still saves."""
    multiple = request.round_to or candidate.layer.round_to
    pairs = zip(ranks, candidate.max_ranks, strict=True)
    rounded = tuple(min(-(-rank // multiple) * multiple, most) for rank, most in pairs)
    return rounded if candidate.saves(rounded) or request.force_factorize else ranks


def _listed(ranks: tuple[int, ...]) -> str:
    return ", ".join(map(str, ranks))


def _predicted(candidate: Candidate, ranks: tuple[int, ...], request: Request) -> float | None:
    """Return the loss by the objective, over all unfoldings, where singular values were looked at."""
    pairs = zip(candidate.spectra, ranks, strict=True) if candidate.spectra else ()
    losses = [request.objective.loss(spectrum, rank) for spectrum, rank in pairs]
    return request.objective.total(losses) if losses else None


def _chosen(layer: Layer, choice: Choice, solver: Solver, path: Path, force_factorize: bool) -> Factorize:
    """Return the decision of a plan file, after checking that its ranks can be and save."""
    decomposition = decomposition_of(choice.decomposition, solver)
    reason = decomposition.refuse(layer)
    if reason:
        raise PlanMismatch(
            f"`{path}` gives `{layer.name}` to {choice.decomposition}, which does not take it: {reason}. "
            f"Write `{DEFAULT_DECOMPOSITION}` there, or take it out of the plan."
        )
    most = decomposition.max_ranks(layer)
    if len(choice.ranks) != len(most) or not all(1 <= r <= m for r, m in zip(choice.ranks, most, strict=True)):
        raise PlanMismatch(f"`{path}` gives `{layer.name}` ranks {list(choice.ranks)}; they go from 1 to {list(most)}.")
    candidate = candidate_of(layer, decomposition)
    if not (candidate.saves(choice.ranks) or force_factorize):
        raise PlanMismatch(
            f"`{path}` gives `{layer.name}` ranks {list(choice.ranks)}, which save nothing. "
            f"Go down to {_listed(candidate.equal(candidate.break_even_rank))}, or take it out of the plan."
        )
    return Factorize(
        layer, choice.decomposition, choice.ranks, decomposition.blueprint(layer, choice.ranks), choice.dtype
    )


def _plan(checkpoint: Source, decisions: Sequence[Factorize | Keep]) -> Plan:
    return Plan(
        tuple(decision for decision in decisions if isinstance(decision, Factorize)),
        tuple(decision for decision in decisions if isinstance(decision, Keep)),
        str(checkpoint.path),
        fingerprint(checkpoint.tensors()),
    )


def _keep(layer: Layer, reason: str) -> Keep:
    return Keep(layer.name, layer.weight, reason)
