"""What a user asks for: rules, budgets and solvers, from options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lrzip.core.errors import UsageError
from lrzip.core.layers import FACTORIZABLE_DTYPES, Layer
from lrzip.decompositions import DECOMPOSITIONS, DEFAULT_DECOMPOSITION, Decompositions
from lrzip.formats.protocols import Source
from lrzip.linalg.svd import METHODS, Solver
from lrzip.pipeline.meters import meter_of
from lrzip.pipeline.profile import Profile
from lrzip.pipeline.selection import rule_for
from lrzip.ranks import Meter, RankRule, parse_rule
from lrzip.ranks.objectives import DEFAULT_OBJECTIVE, OBJECTIVES, Objective, objective_of


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
    decomposition: str = DEFAULT_DECOMPOSITION,
    force_factorize: bool = False,
    objective: str | None = None,
) -> Request | None:
    """Return what is asked of the layers, or None where a plan file decides."""
    if decomposition not in DECOMPOSITIONS:
        raise UsageError(f"`decomposition` must be one of {', '.join(DECOMPOSITIONS)}, got {decomposition}.")
    if objective and objective_of(objective).measured and decomposition != DEFAULT_DECOMPOSITION:
        raise UsageError(f"`--objective {objective}` measures ranks of the SVD. Leave out `--decomposition`.")
    if dtype != "keep" and dtype not in FACTORIZABLE_DTYPES:
        raise UsageError(f"`dtype` must be keep, {', '.join(FACTORIZABLE_DTYPES)}, got {dtype}.")
    if round_to is not None and round_to < 1:
        raise UsageError(f"`round-to` must be at least 1, got {round_to}.")
    if rule is None:
        other = decomposition != DEFAULT_DECOMPOSITION
        if layers or only or skip or round_to is not None or dtype != "keep" or objective or other:
            raise UsageError("`--plan` decides on every layer. Edit the plan instead of adding other rules.")
        return None
    rules = {pattern: None if text == "keep" else parse_rule(text) for pattern, text in layers.items()}
    if any(own and own.unit for own in rules.values()):
        raise UsageError("`--layer` takes no budget: there is one for all layers. Give it with `--budget`.")
    made = Request(
        rule=rule,
        rules=rules,
        only=only,
        skip=skip,
        round_to=round_to,
        dtype=None if dtype == "keep" else dtype,
        decomposition=decomposition,
        force_factorize=force_factorize,
    )
    return with_objective(made, objective or DEFAULT_OBJECTIVE)


def with_objective(request: Request, name: str) -> Request:
    """Return the same request with another objective."""
    return replace(request, objective=objective_of(name))


def meter_for(request: Request, checkpoint: Source, solver: Solver, found: Profile | None) -> Meter | None:
    """Return what the budget of a request counts, if it has one."""
    if not request.rule.unit:
        return None
    decompositions = Decompositions(request.decomposition, solver)
    return meter_of(request.rule.unit, checkpoint.tensors().values(), decompositions, dtype=request.dtype, found=found)


def solver_of(svd: str, oversample: int, power_iterations: int, tolerance: float) -> Solver:
    """Return the solver that options ask for."""
    if svd not in METHODS:
        raise UsageError(f"`svd` must be one of {', '.join(METHODS)}, got {svd}.")
    if oversample < 0 or power_iterations < 0:
        raise UsageError("`oversample` and `power-iterations` must be at least 0.")
    if not tolerance > 0:
        raise UsageError(f"`tolerance` must be above 0, or inf, got {tolerance:g}.")
    return Solver(svd, oversample, power_iterations, tolerance)
