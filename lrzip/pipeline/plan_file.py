"""Load a plan file, and check that it fits the checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lrzip.core.decisions import Factorize
from lrzip.core.errors import PlanMismatch, UnknownName
from lrzip.core.layers import Group, Keep, Layer, TensorSpec
from lrzip.core.plan import Plan
from lrzip.core.plan_file import PlanEntry, read_plan
from lrzip.decompositions import (
    DECOMPOSITIONS,
    DEFAULT_DECOMPOSITION,
    PRODUCT,
    decomposition_of,
    group_decomposition_of,
)
from lrzip.formats.protocols import Source, with_bias
from lrzip.networks.architecture import Architecture
from lrzip.pipeline.decide import listed, plan_of
from lrzip.pipeline.request import Request
from lrzip.pipeline.survey import candidate_of


def load_plan(source: Source, path: Path, request: Request, architecture: Architecture | None = None) -> Plan:
    """Return the plan in a file, after checking that it fits a checkpoint.

    Args:
        source: The checkpoint or network.
        path: The plan file.
        request: Solver of the factors, and whether ranks that save nothing are accepted.
        architecture: Architecture of the network, if it is known.

    Raises:
        PlanMismatch: The file is malformed or does not fit; the message names the first mismatch.
        UnknownName: An entry names no decomposition that lrzip has.
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
        elif name == next(iter(file.choices[name].shapes)):  # a group is decided once, at its first layer
            decisions.append(_chosen(source, named, file.choices[name], request, path))
    return plan_of(source, decisions)


def _tensor(item: Layer | Keep) -> TensorSpec:
    return item.weight if isinstance(item, Layer) else item.tensor


def _named_layer(item: Layer | Keep, path: Path) -> Layer:
    """Return the layer that a plan file names; naming an ambiguous layer is enough to factorize it."""
    layer = item if isinstance(item, Layer) else item.override
    if layer is None:
        reason = item.reason if isinstance(item, Keep) else ""
        raise PlanMismatch(f"`{path}` names `{_tensor(item).name}`, which is kept: {reason}. Take it out of the plan.")
    return layer


def _chosen(source: Source, named: Mapping[str, Layer], choice: PlanEntry, request: Request, path: Path) -> Factorize:
    """Return the decision of a plan file, after checking that its ranks are within bounds and save."""
    missing = next((name for name in choice.shapes if name not in named), None)
    if missing is not None:
        raise PlanMismatch(f"`{path}` names `{missing}`, which belongs to another layer. Take it out of the plan.")
    if choice.decomposition not in (*DECOMPOSITIONS, PRODUCT):
        raise UnknownName(
            f"`{path}` gives `{next(iter(choice.shapes))}` to the unknown decomposition `{choice.decomposition}`. "
            f"Choose one of: {', '.join(DECOMPOSITIONS)}."
        )
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
    candidate = candidate_of(layer, choice.decomposition, decomposition)
    if not (candidate.saves(choice.ranks) or request.factoring.force_factorize):
        raise PlanMismatch(
            f"`{path}` gives `{layer.name}` ranks {list(choice.ranks)}, which save nothing. "
            f"Go down to {listed(candidate.equal(candidate.break_even_rank))}, or take it out of the plan."
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
