"""Requests: the target of a compression, and the options that determine layers, ranks and factors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

from lrzip.core.errors import UsageError
from lrzip.core.layers import FACTORIZABLE_DTYPES, Layer
from lrzip.core.options import Factoring, NamedTarget, Selection, Target
from lrzip.core.structure import Structure
from lrzip.decompositions import DECOMPOSITIONS, DEFAULT_DECOMPOSITION, FAMILIES, Decompositions, members
from lrzip.linalg.svd import METHODS, Solver
from lrzip.pipeline.selection import rule_for
from lrzip.ranks import RankRule, parse_rule
from lrzip.ranks.objectives import DEFAULT_OBJECTIVE, OBJECTIVES, Objective, objective_of


@dataclass(frozen=True)
class Request:
    """A request to factorize selected layers to the ranks of a rule or of a plan file.

    Attributes:
        target: Rule for the layers that no pattern of `rules` matches, or a plan file that decides on every layer.
        selection: Layers to factorize.
        factoring: How ranks and factors are computed.
        rules: Rules of some layers by pattern, or None to leave them dense; the last match wins.
        overrides: Decompositions of some layers by pattern; the last match wins.
        objective: Prediction of the loss of a rank.
        obstacle: States why the output cannot hold a structure.
    """

    target: RankRule | Path
    selection: Selection = field(default_factory=Selection)
    factoring: Factoring = field(default_factory=Factoring)
    rules: Mapping[str, RankRule | None] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    objective: Objective = OBJECTIVES[DEFAULT_OBJECTIVE]
    obstacle: Callable[[Structure], str | None] = lambda _: None

    @cached_property
    def solver(self) -> Solver:
        """The solver of truncated SVDs."""
        how = self.factoring
        return Solver(how.svd, how.oversample, how.power_iterations, how.tolerance)

    @cached_property
    def decompositions(self) -> Decompositions:
        """The decomposition of each layer."""
        return Decompositions(self.factoring.decomposition, self.solver, self.overrides, self.obstacle)

    @property
    def dtype(self) -> str | None:
        """The dtype of the factors; None to keep that of each layer."""
        return None if self.factoring.dtype == "keep" else self.factoring.dtype

    @property
    def unit(self) -> str | None:
        """The unit of the budget, if the target is one."""
        return None if isinstance(self.target, Path) else self.target.unit

    def rule_of(self, layer: Layer) -> RankRule | None:
        """Return the rule of a layer, or None to leave it dense."""
        assert not isinstance(self.target, Path), "a plan file decides without rules"
        return rule_for(layer, self.rules, self.target)

    def with_default_objective(self, name: str) -> "Request":
        """Return the request with another objective, unless it was named explicitly."""
        return self if self.factoring.objective else replace(self, objective=objective_of(name))


def target_of(*groups: Target | NamedTarget) -> RankRule | Path:
    """Return the rank rule or the plan file that options name.

    Args:
        groups: Options of which exactly one is given.

    Raises:
        UsageError: None or several are given, or the number of the rule is out of range.
    """
    values = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
    given = [name for name, value in values.items() if value is not None and value is not False]
    if len(given) != 1:
        *known, last = (f"`{name}`" for name in values)
        got = " and ".join(f"`{name}`" for name in given) or "none"
        raise UsageError(f"Give exactly one of {', '.join(known)} and {last}, got {got}.")
    (name,) = given
    if name == "plan":
        return Path(values[name])
    if name == "rank_rule":
        return parse_rule(values[name])
    return parse_rule(name if values[name] is True else f"{name}:{values[name]}")


def request_of(
    target: RankRule | Path, selection: Selection, factoring: Factoring, layers: Mapping[str, str] | None = None
) -> Request:
    """Return a request after checking its options.

    Args:
        target: Rank rule, or plan file.
        selection: Layers to factorize.
        factoring: How ranks and factors are computed.
        layers: Choices for some layers by pattern: a rule, `keep`, a decomposition, or both as `tucker:energy:0.9`.

    Raises:
        UsageError: Options contradict each other or are out of range.
        UnknownName: The objective is unknown.
    """
    members(factoring.decomposition)
    _check(factoring)
    if isinstance(target, Path):
        _check_plan_alone(selection, factoring, layers or {})
    overrides, texts = _split(layers or {})
    rules = {p: None if text == "keep" else parse_rule(text) for p, text in texts.items()}
    if any(rule and rule.unit for rule in rules.values()):
        raise UsageError("`layers` takes no budget: there is one for all layers. Give it with `budget` or `rank_rule`.")
    objective = objective_of(factoring.objective or DEFAULT_OBJECTIVE)
    return Request(target, selection, factoring, rules, overrides, objective)


def _split(layers: Mapping[str, str]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the decompositions and the rules that texts such as `tucker`, `energy:0.9` or `svd:ratio:4` name."""
    overrides, rules = {}, {}
    for pattern, text in layers.items():
        name, _, rest = text.partition(":")
        if name in (*DECOMPOSITIONS, *FAMILIES):
            overrides[pattern] = name
        else:
            rest = text
        if rest:
            rules[pattern] = rest
    return overrides, rules


def _check_plan_alone(selection: Selection, factoring: Factoring, layers: Mapping[str, str]) -> None:
    ranks = factoring.objective or factoring.round_to is not None or layers or selection.only or selection.skip
    if ranks or factoring.dtype != "keep" or factoring.decomposition != DEFAULT_DECOMPOSITION:
        raise UsageError("`plan` decides on every layer. Edit the plan instead of adding other rules.")


def _check(factoring: Factoring) -> None:
    measured = factoring.objective and objective_of(factoring.objective).measured
    if measured and factoring.decomposition != DEFAULT_DECOMPOSITION:
        name = factoring.objective
        raise UsageError(f"`objective={name}` measures ranks of the SVD. Leave out `decomposition`.")
    if factoring.dtype != "keep" and factoring.dtype not in FACTORIZABLE_DTYPES:
        raise UsageError(f"`dtype` must be keep, {', '.join(FACTORIZABLE_DTYPES)}, got {factoring.dtype}.")
    if factoring.round_to is not None and factoring.round_to < 1:
        raise UsageError(f"`round_to` must be at least 1, got {factoring.round_to}.")
    if factoring.svd not in METHODS:
        raise UsageError(f"`svd` must be one of {', '.join(METHODS)}, got {factoring.svd}.")
    if factoring.oversample < 0 or factoring.power_iterations < 0:
        raise UsageError("`oversample` and `power_iterations` must be at least 0.")
    if not factoring.tolerance > 0:
        raise UsageError(f"`tolerance` must be above 0, or inf, got {factoring.tolerance:g}.")
