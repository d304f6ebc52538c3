"""Pass 1: look at every layer, one at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.layers import Keep, Layer
from lrzip.core.moments import Statistics
from lrzip.core.progress import Progress
from lrzip.core.spectrum import Spectrum
from lrzip.decompositions import Decomposition, Decompositions
from lrzip.formats.protocols import Source
from lrzip.linalg.blocks.gram import is_finite
from lrzip.linalg.svd import Solver
from lrzip.networks.architecture import Architecture
from lrzip.pipeline.parallel import map_in_order
from lrzip.pipeline.request import Request
from lrzip.pipeline.scratch import Scratch
from lrzip.pipeline.selection import select
from lrzip.ranks import Candidate, RankRule


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
        if isinstance(item, Candidate) and statistics is not None:
            moments = statistics[item.layer.name]
            item = replace(item, fisher=moments.fisher, measured=moments.measured)
        seen.append(item if rule or isinstance(item, Keep) else item.layer.kept("kept by `--layer`"))
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
    return layer.kept("the calibration does not reach it")


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
        return layer.kept(reason) if reason else replace(candidate, spectra=look(candidate, weight))

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
    kept = [item for item in found if isinstance(item, Keep) and item.override is None]
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
