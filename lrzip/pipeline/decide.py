"""Decide on the ranks of layers, by rules or by given ranks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lrzip.core.budget_use import BudgetUse
from lrzip.core.decisions import Factorize
from lrzip.core.errors import LrzipError
from lrzip.core.layers import Keep, Layer
from lrzip.core.options import Factoring
from lrzip.core.plan import Plan, fingerprint
from lrzip.decompositions import DEFAULT_DECOMPOSITION, members
from lrzip.formats.protocols import Source
from lrzip.pipeline.request import Request
from lrzip.ranks import Candidate, Context, Meter, Pick, RankRule


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
    _check_taken(items, request)
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
            name = candidate.group.name
            decided[name] = _decide(candidate, choice.picks.get(name), rule, request)
    decisions = [item if isinstance(item, Keep) else decided[item.group.name] for item in items]
    return replace(plan_of(source, decisions), budget=spent)


def plan_with(
    source: Source,
    items: Sequence[Layer | Keep],
    ranks: Mapping[str, tuple[int, ...]],
    request: Request,
    *,
    reason: str,
) -> Plan:
    """Return the plan with given ranks, even where they save no parameters.

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
            (name, *_) = request.decompositions.names_for(item)
            decisions.append(_factorize(item, Pick(name, ranks[item.name]), request))
        else:
            decisions.append(item.kept(reason))
    return plan_of(source, decisions)


def _saved(decided: Mapping[str, Factorize | Keep], meter: Meter) -> int:
    """Return the amount that decisions save, in the unit of a meter."""
    replaced = [decision for decision in decided.values() if isinstance(decision, Factorize)]
    picks = ((item.layer, Pick(item.decomposition, item.ranks)) for item in replaced)
    return sum(meter.cost(layer, None) - meter.cost(layer, pick) for layer, pick in picks)


def _check_taken(items: Sequence[Candidate | Keep], request: Request) -> None:
    """Refuse a decomposition that takes none of the layers."""
    name = request.factoring.decomposition
    candidates = [item for item in items if isinstance(item, Candidate)]
    used = {each.decomposition for candidate in candidates for each in candidate.alternatives}
    if candidates and name != DEFAULT_DECOMPOSITION and used.isdisjoint(members(name)):
        refuse = request.decompositions.refuse
        reasons = Counter(str(refuse(each, item.layer)) for item in candidates for each in members(name))
        raise LrzipError(
            f"No selected layer can be replaced by `decomposition={name}`: most are {reasons.most_common(1)[0][0]}. "
            "Choose another one, or auto."
        )


def _decide(candidate: Candidate, pick: Pick | None, rule: RankRule, request: Request) -> Factorize | Keep:
    layer = candidate.layer
    candidate, ranks = (candidate.by(pick.decomposition), pick.ranks) if pick else (candidate, None)
    break_even = f"break-even is {listed(candidate.equal(candidate.break_even_rank))}"
    if ranks is None:
        return layer.kept(f"kept by {rule}" if rule.unit else f"no rank meets {rule}; {break_even}")
    if not (candidate.saves(ranks) or request.factoring.force_factorize):
        return layer.kept(f"rank {listed(ranks)} saves nothing; {break_even}")
    if not rule.unit:  # a rule with a unit has rounded its ranks itself
        ranks = _rounded(candidate, ranks, request.factoring)
    decision = _factorize(layer, Pick(candidate.decomposition, ranks), request)
    return replace(decision, predicted_loss=request.objective.loss(candidate, ranks))


def _factorize(layer: Layer, pick: Pick, request: Request) -> Factorize:
    structure = request.decompositions.of(pick.decomposition).blueprint(layer, pick.ranks)
    return Factorize.of(layer, pick.decomposition, pick.ranks, structure, request.dtype or layer.weight.dtype)


def _rounded(candidate: Candidate, ranks: tuple[int, ...], factoring: Factoring) -> tuple[int, ...]:
    """Return ranks rounded up to a multiple, but not above the largest ranks, if they still save."""
    multiple = factoring.round_to or candidate.layer.round_to
    pairs = zip(ranks, candidate.max_ranks, strict=True)
    rounded = tuple(min(-(-rank // multiple) * multiple, most) for rank, most in pairs)
    return rounded if candidate.saves(rounded) or factoring.force_factorize else ranks


def listed(ranks: tuple[int, ...]) -> str:
    """Return ranks as text."""
    return ", ".join(map(str, ranks))


def plan_of(source: Source, decisions: Sequence[Factorize | Keep]) -> Plan:
    """Return decisions as a plan for a source."""
    return Plan(
        tuple(decision for decision in decisions if isinstance(decision, Factorize)),
        tuple(decision for decision in decisions if isinstance(decision, Keep)),
        str(source.path),
        fingerprint(source.tensors()),
    )
