"""Decide on the ranks of layers: by rules, by a plan file, or by given ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lrzip.core.budget_use import BudgetUse
from lrzip.core.decisions import Factorize
from lrzip.core.errors import PlanMismatch
from lrzip.core.layers import Group, Keep, Layer, TensorSpec
from lrzip.core.options import Factoring
from lrzip.core.plan import Plan, fingerprint
from lrzip.core.plan_file import PlanEntry, read_plan
from lrzip.decompositions import DEFAULT_DECOMPOSITION, decomposition_of, group_decomposition_of
from lrzip.formats.protocols import Source, with_bias
from lrzip.networks.architecture import Architecture
from lrzip.pipeline.request import Request
from lrzip.pipeline.survey import candidate_of
from lrzip.ranks import Candidate, Context, Meter, RankRule


def decide(source: Source, items: Sequence[Candidate | Keep], request: Request, meter: Meter | None = None) -> Plan:
    """Return the plan that the rules of a request choose; rules with a unit choose after all others.

    Args:
        source: The checkpoint or network.
        items: Candidates with the spectra that their rules need, and kept tensors, in file order.
        request: Rules, and how ranks are rounded.
        meter: Counts the unit of the target; None if it has none.

    Raises:
        LrzipError: A budget cannot be met.
    """
    assert not isinstance(request.target, Path), "a plan file decides without rules"
    groups: dict[RankRule, list[Candidate]] = {request.target: []}
    for candidate in (item for item in items if isinstance(item, Candidate)):
        rule = request.rule_of(candidate.layer)
        assert rule, "a layer without a rule is kept"
        groups.setdefault(rule, []).append(candidate)
    decided: dict[str, Factorize | Keep] = {}
    spent: BudgetUse | None = None
    for rule, candidates in sorted(groups.items(), key=lambda group: group[0].unit is not None):
        saved = _saved(decided, meter) if meter else 0
        choice = rule.choose(candidates, Context(meter, saved, request.factoring.round_to, request.objective))
        spent = choice.budget or spent
        for candidate in candidates:
            name = candidate.layer.name
            decided[name] = _decide(candidate, choice.ranks.get(name), rule, request)
    decisions = [item if isinstance(item, Keep) else decided[item.layer.name] for item in items]
    return replace(plan_of(source, decisions), budget=spent)


def plan_with(
    source: Source,
    items: Sequence[Layer | Keep],
    ranks: Mapping[str, tuple[int, ...]],
    request: Request,
    *,
    reason: str,
) -> Plan:
    """Return the plan with given ranks, whether they save or not; `reason` says why other layers are kept.

    Args:
        source: The checkpoint or network.
        items: Selected layers and kept tensors, in file order.
        ranks: Ranks by layer name.
        request: Decomposition and dtype of the factors.
        reason: Why layers without ranks are kept.
    """
    decisions: list[Factorize | Keep] = []
    for item in items:
        if isinstance(item, Keep):
            decisions.append(item)
        elif item.name in ranks:
            decisions.append(_factorize(item, ranks[item.name], request))
        else:
            decisions.append(item.kept(reason))
    return plan_of(source, decisions)


def load_plan(source: Source, path: Path, request: Request, architecture: Architecture | None = None) -> Plan:
    """Return the plan in a file, after checking that it fits a checkpoint.

    Args:
        source: The checkpoint or network.
        path: The plan file.
        request: Solver of the factors, and whether ranks that save nothing are accepted.
        architecture: Architecture of the network, if it is known.

    Raises:
        PlanMismatch: The file is malformed or does not fit; the message names the first mismatch.
    """
    file = read_plan(path)
    mismatch = file.mismatch(source.tensors())
    if mismatch:
        raise PlanMismatch(
            f"`{path}` does not fit `{source.path}`: {mismatch}. "
            "Make a new plan with `dry_run=True` and `save_plan=FILE`."
        )
    found = source.layers(architecture)
    named = {_tensor(item).name: _named_layer(item, path) for item in found if _tensor(item).name in file.choices}
    decisions: list[Factorize | Keep] = []
    for item in found:
        name = _tensor(item).name
        if name not in file.choices:
            decisions.append(item.kept(f"not in `{path}`") if isinstance(item, Layer) else item)
        elif name == next(iter(file.choices[name].shapes)):  # of a group, the first layer stands for all
            decisions.append(_chosen(source, named, file.choices[name], request, path))
    return plan_of(source, decisions)


def _tensor(item: Layer | Keep) -> TensorSpec:
    return item.weight if isinstance(item, Layer) else item.tensor


def _named_layer(item: Layer | Keep, path: Path) -> Layer:
    """Return the layer that a plan file names, also where only that resolves an ambiguity."""
    layer = item if isinstance(item, Layer) else item.override
    if layer is None:
        reason = item.reason if isinstance(item, Keep) else ""
        raise PlanMismatch(f"`{path}` names `{_tensor(item).name}`, which is kept: {reason}. Take it out of the plan.")
    return layer


def _saved(decided: Mapping[str, Factorize | Keep], meter: Meter) -> int:
    """Return the amount that decisions save, in the unit of a meter."""
    chains = [decision for decision in decided.values() if isinstance(decision, Factorize)]
    return sum(meter.cost(chain.layer, None) - meter.cost(chain.layer, chain.ranks) for chain in chains)


def _decide(candidate: Candidate, ranks: tuple[int, ...] | None, rule: RankRule, request: Request) -> Factorize | Keep:
    layer = candidate.layer
    break_even = f"break-even is {_listed(candidate.equal(candidate.break_even_rank))}"
    if ranks is None:
        return layer.kept(f"kept by {rule}" if rule.unit else f"no rank meets {rule}; {break_even}")
    if not (candidate.saves(ranks) or request.factoring.force_factorize):
        return layer.kept(f"rank {_listed(ranks)} saves nothing; {break_even}")
    if not rule.unit:  # a rule with a unit has rounded its ranks itself
        ranks = _rounded(candidate, ranks, request.factoring)
    return replace(_factorize(layer, ranks, request), predicted_loss=request.objective.loss(candidate, ranks))


def _factorize(layer: Layer, ranks: tuple[int, ...], request: Request) -> Factorize:
    decompositions = request.decompositions
    structure, name = decompositions.of(layer).blueprint(layer, ranks), decompositions.name_for(layer)
    return Factorize.of(layer, name, ranks, structure, request.dtype or layer.weight.dtype)


def _rounded(candidate: Candidate, ranks: tuple[int, ...], factoring: Factoring) -> tuple[int, ...]:
    """Return ranks rounded up to a multiple, but not above the largest ranks, if they still save."""
    multiple = factoring.round_to or candidate.layer.round_to
    pairs = zip(ranks, candidate.max_ranks, strict=True)
    rounded = tuple(min(-(-rank // multiple) * multiple, most) for rank, most in pairs)
    return rounded if candidate.saves(rounded) or factoring.force_factorize else ranks


def _listed(ranks: tuple[int, ...]) -> str:
    return ", ".join(map(str, ranks))


def _chosen(source: Source, named: Mapping[str, Layer], choice: PlanEntry, request: Request, path: Path) -> Factorize:
    """Return the decision of a plan file, after checking that its ranks are within bounds and save."""
    missing = next((name for name in choice.shapes if name not in named), None)
    if missing is not None:
        raise PlanMismatch(f"`{path}` names `{missing}`, which belongs to another layer. Take it out of the plan.")
    layers = tuple(named[name] for name in choice.shapes)
    if len(layers) > 1:
        return _chosen_group(Group(tuple(with_bias(source, layer) for layer in layers)), choice, request, path)
    return _chosen_layer(layers[0], choice, request, path)


def _chosen_layer(layer: Layer, choice: PlanEntry, request: Request, path: Path) -> Factorize:
    decomposition = decomposition_of(choice.decomposition, request.solver)
    reason = decomposition.refuse(layer)
    if reason:
        raise PlanMismatch(
            f"`{path}` gives `{layer.name}` to {choice.decomposition}, which does not take it: {reason}. "
            f"Write `{DEFAULT_DECOMPOSITION}` there, or take it out of the plan."
        )
    _check_ranks(layer.name, choice.ranks, decomposition.max_ranks(layer), path)
    candidate = candidate_of(layer, decomposition)
    if not (candidate.saves(choice.ranks) or request.factoring.force_factorize):
        raise PlanMismatch(
            f"`{path}` gives `{layer.name}` ranks {list(choice.ranks)}, which save nothing. "
            f"Go down to {_listed(candidate.equal(candidate.break_even_rank))}, or take it out of the plan."
        )
    return Factorize.of(
        layer, choice.decomposition, choice.ranks, decomposition.blueprint(layer, choice.ranks), choice.dtype
    )


def _chosen_group(group: Group, choice: PlanEntry, request: Request, path: Path) -> Factorize:
    decomposition = group_decomposition_of(choice.decomposition, request.solver)
    reason = decomposition.refuse_group(group) if decomposition else "it replaces one layer at a time"
    if decomposition is None or reason:
        raise PlanMismatch(
            f"`{path}` gives `{group.name}` to {choice.decomposition}, which does not take them together: {reason}. "
            "Take them out of the plan."
        )
    _check_ranks(group.name, choice.ranks, decomposition.max_group_ranks(group), path)
    replacements = decomposition.replacements(group, choice.ranks)
    decision = Factorize(replacements, choice.decomposition, choice.ranks, choice.dtype)
    if decision.parameters_after >= decision.parameters_before and not request.factoring.force_factorize:
        raise PlanMismatch(f"`{path}` gives `{group.name}` ranks {list(choice.ranks)}, which save nothing.")
    return decision


def _check_ranks(name: str, ranks: Sequence[int], most: Sequence[int], path: Path) -> None:
    if len(ranks) != len(most) or not all(1 <= r <= m for r, m in zip(ranks, most, strict=True)):
        raise PlanMismatch(f"`{path}` gives `{name}` ranks {list(ranks)}; they go from 1 to {list(most)}.")


def plan_of(source: Source, decisions: Sequence[Factorize | Keep]) -> Plan:
    """Return decisions as a plan for a source."""
    return Plan(
        tuple(decision for decision in decisions if isinstance(decision, Factorize)),
        tuple(decision for decision in decisions if isinstance(decision, Keep)),
        str(source.path),
        fingerprint(source.tensors()),
    )
