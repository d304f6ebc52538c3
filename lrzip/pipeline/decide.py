"""Let the rules choose ranks for the layers that were surveyed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lrzip.core.errors import PlanMismatch
from lrzip.core.layers import Keep, Layer
from lrzip.core.moments import Statistics
from lrzip.core.plan import BudgetUse, Factorize, Plan, PlanEntry, fingerprint, read_plan
from lrzip.core.progress import Progress
from lrzip.decompositions import DEFAULT_DECOMPOSITION, Decompositions, decomposition_of
from lrzip.formats.protocols import Source
from lrzip.linalg.svd import Solver
from lrzip.networks.architecture import Architecture
from lrzip.pipeline.request import Request
from lrzip.pipeline.scratch import Scratch
from lrzip.pipeline.survey import candidate_of, look_at
from lrzip.ranks import Candidate, Context, Meter, RankRule


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
    spent: BudgetUse | None = None
    for rule, candidates in sorted(groups.items(), key=lambda group: group[0].unit is not None):
        saved = _saved(decided, meter) if meter else 0
        choice = rule.choose(candidates, Context(meter, saved, request.round_to, request.objective))
        spent = choice.budget or spent
        for candidate in candidates:
            name = candidate.layer.name
            decided[name] = _decide(candidate, choice.ranks.get(name), rule, request, decompositions)
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
            decisions.append(item.kept(f"not in `{path}`") if isinstance(item, Layer) else item)
            continue
        layer = item if isinstance(item, Layer) else item.override
        if layer is None:
            reason = item.reason if isinstance(item, Keep) else ""
            raise PlanMismatch(f"`{path}` names `{tensor.name}`, which is kept: {reason}. Take it out of the plan.")
        decisions.append(_chosen(layer, file.choices[tensor.name], solver, path, force_factorize))
    return _plan(checkpoint, decisions)


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
        return layer.kept(f"kept by {rule}" if rule.unit else f"no rank meets {rule}; {break_even}")
    if not (candidate.saves(ranks) or request.force_factorize):
        return layer.kept(f"rank {_listed(ranks)} saves nothing; {break_even}")
    if not rule.unit:  # a rule with a unit has rounded its ranks itself
        ranks = _rounded(candidate, ranks, request)
    stages, name = decompositions.of(layer).blueprint(layer, ranks), decompositions.name_for(layer)
    dtype = request.dtype or layer.weight.dtype
    return Factorize(layer, name, ranks, stages, dtype, request.objective.loss(candidate, ranks))


def _rounded(candidate: Candidate, ranks: tuple[int, ...], request: Request) -> tuple[int, ...]:
    """Return ranks rounded up to a multiple, or to the largest there are, where that still saves."""
    multiple = request.round_to or candidate.layer.round_to
    pairs = zip(ranks, candidate.max_ranks, strict=True)
    rounded = tuple(min(-(-rank // multiple) * multiple, most) for rank, most in pairs)
    return rounded if candidate.saves(rounded) or request.force_factorize else ranks


def _listed(ranks: tuple[int, ...]) -> str:
    return ", ".join(map(str, ranks))


def _chosen(layer: Layer, choice: PlanEntry, solver: Solver, path: Path, force_factorize: bool) -> Factorize:
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
