"""Properties of every registered decomposition, for every kind of layer that it replaces."""

from collections.abc import Iterator
from itertools import pairwise
from math import prod, sqrt

import pytest
import torch
from torch import Generator, Tensor, nn

from lrzip.core.factors import Factors
from lrzip.core.layers import FACTORIZABLE_DTYPES, Layer, TensorSpec
from lrzip.core.stored import DenseLayer, Stored, find_structures
from lrzip.core.structure import Chain, Stage, Structure, Sum, bias_name, leaves, tensor_names, tensor_shapes
from lrzip.decompositions import (
    DECOMPOSITIONS,
    DEFAULT_DECOMPOSITION,
    Decomposition,
    Decompositions,
    decomposition_of,
)
from lrzip.linalg.blocks.subnormals import subnormals
from lrzip.linalg.svd import Solver
from lrzip.networks.architecture import module_info
from lrzip.networks.surgery import build
from tests.support.decompositions import ADDED, GROUPS, REARRANGING, registered

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(40, 24), (2, 7, 40)),
    "linear-no-bias": (nn.Linear(24, 40, bias=False), (5, 24)),
    "linear-one-output": (nn.Linear(16, 1), (5, 16)),
    "conv1d": (nn.Conv1d(6, 20, 5, stride=2, padding=3, dilation=2), (2, 6, 30)),
    "conv2d": (nn.Conv2d(8, 20, 3, stride=(1, 2), padding=1), (2, 8, 12, 12)),
    "conv2d-dilated": (nn.Conv2d(8, 20, (3, 5), stride=2, padding=(2, 3), dilation=2), (2, 8, 13, 12)),
    "conv2d-pointwise": (nn.Conv2d(24, 20, 1, stride=2, bias=False), (2, 24, 6, 6)),
    "conv2d-reflect": (nn.Conv2d(8, 20, (3, 5), padding="same", padding_mode="reflect"), (2, 8, 12, 12)),
    "conv2d-groups": (nn.Conv2d(24, 36, 3, stride=2, padding=1, groups=4), (2, 24, 9, 9)),
    "conv1d-groups": (nn.Conv1d(24, 36, 5, dilation=2, groups=3, bias=False), (2, 24, 20)),
    "conv_transpose1d": (nn.ConvTranspose1d(12, 9, 4, stride=2, padding=1, bias=False), (2, 12, 15)),
    "conv_transpose2d": (
        nn.ConvTranspose2d(12, 20, (3, 2), stride=(2, 3), padding=1, output_padding=(1, 0), dilation=(1, 2)),
        (2, 12, 5, 6),
    ),
    "conv_transpose3d": (nn.ConvTranspose3d(6, 9, 2, stride=2), (1, 6, 3, 3, 3)),
    "embedding": (nn.Embedding(50, 12, padding_idx=3), (2, 7)),
    "conv3d": (nn.Conv3d(3, 12, (1, 3, 3), padding=(0, 1, 1)), (1, 3, 4, 6, 6)),
}


def make(name: str) -> Decomposition:
    return decomposition_of(name, Solver("exact"))


def layer_of(module: nn.Module) -> Layer:
    weight = module.get_parameter("weight")
    bias = getattr(module, "bias", None)
    info = module_info(module)
    assert info.kind
    specs = [
        TensorSpec(f"x.{leaf}", tuple(t.shape), "float32", t.numel() * 4) if t is not None else None
        for leaf, t in (("weight", weight), ("bias", bias))
    ]
    assert specs[0]
    return Layer("x", "x", info.kind, specs[0], specs[1], info.groups)


with registered():
    ALL = [name for name in DECOMPOSITIONS if name not in GROUPS | REARRANGING]
    TAKEN = {
        f"{name}-{kind}": (name, case)
        for name in ALL
        for kind, case in LAYERS.items()
        if make(name).refuse(layer_of(case[0])) is None
    }
CASES = pytest.mark.parametrize(("name", "case"), TAKEN.values(), ids=TAKEN)
NAMES = pytest.mark.parametrize("name", ALL)


@pytest.fixture(autouse=True)
def all_registered() -> Iterator[None]:
    with registered():
        yield


def chains_in(structure: Structure) -> list[Chain]:
    """Return the chains of a structure."""
    parts = structure.branches if isinstance(structure, Sum) else ()
    return [structure] if isinstance(structure, Chain) else [chain for part in parts for chain in chains_in(part)]


def test_every_decomposition_replaces_some_layer() -> None:
    assert set(ADDED) < set(ALL)
    assert {name for name, _ in TAKEN.values()} == set(ALL)
    spatial = {f"spatial-vertical-{kind}" for kind in ("conv2d", "conv2d-dilated", "conv2d-reflect")}
    assert spatial < set(TAKEN)


def some_case(name: str) -> nn.Module:
    """Return a layer that a decomposition replaces."""
    return next(case[0] for taken, case in TAKEN.values() if taken == name)


def factorize(
    name: str, layer: Layer, weight: Tensor, ranks: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> Factors:
    return make(name).factorize(layer, weight, ranks, dtype=dtype, generator=Generator().manual_seed(0))


def error_of(layer: Layer, weight: Tensor, factors: Factors) -> float:
    dense = factors.dense(layer.stage).double()
    return float(torch.linalg.vector_norm(weight.double() - dense) / torch.linalg.vector_norm(weight.double()))


@CASES
def test_the_blueprint_has_the_shapes_that_factorize_returns(
    name: str, case: tuple[nn.Module, tuple[int, ...]]
) -> None:
    layer, weight = layer_of(case[0]), case[0].get_parameter("weight").detach()
    ranks = tuple(max(rank // 2, 1) for rank in make(name).max_ranks(layer))
    for dtype in FACTORIZABLE_DTYPES:
        factors = factorize(name, layer, weight, ranks, getattr(torch, dtype))
        assert [tuple(w.shape) for w in factors.weights] == tensor_shapes(make(name).blueprint(layer, ranks))
        assert {str(w.dtype) for w in factors.weights if w.is_floating_point()} == {f"torch.{dtype}"}
        assert all(w.is_contiguous() for w in factors.weights)


@CASES
def test_full_rank_reconstructs(name: str, case: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, weight = layer_of(case[0]), case[0].get_parameter("weight").detach()
    factors = factorize(name, layer, weight, make(name).max_ranks(layer))
    assert factors.error == pytest.approx(error_of(layer, weight, factors), abs=1e-6)
    assert factors.error < 20 * sqrt(prod(layer.matrix_shape)) ** 0.5 * torch.finfo(torch.float32).eps


@CASES
def test_the_error_is_that_of_the_stored_factors(name: str, case: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, weight = layer_of(case[0]), case[0].get_parameter("weight").detach()
    ranks = tuple(max(rank // 2, 1) for rank in make(name).max_ranks(layer))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        factors = factorize(name, layer, weight, ranks, dtype)
        assert factors.error == pytest.approx(error_of(layer, weight, factors), rel=1e-4)


@CASES
def test_the_error_never_grows_with_the_rank(name: str, case: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, weight = layer_of(case[0]), case[0].get_parameter("weight").detach()
    most = make(name).max_ranks(layer)
    steps = [tuple(max(rank * share // 6, 1) for rank in most) for share in range(1, 7)]
    errors = [factorize(name, layer, weight, ranks).error for ranks in steps]
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(errors))


@CASES
def test_the_built_module_computes_what_the_dense_product_does(
    name: str, case: tuple[nn.Module, tuple[int, ...]]
) -> None:
    module, shape = case
    layer, weight = layer_of(module), module.get_parameter("weight").detach()
    ranks = tuple(max(rank // 2, 1) for rank in make(name).max_ranks(layer))
    factors = factorize(name, layer, weight, ranks)
    names = tensor_names(factors.structure)
    specs = [
        TensorSpec(f"x.{n}", tuple(w.shape), str(w.dtype).removeprefix("torch."), w.nbytes)
        for n, w in zip(names, factors.weights, strict=True)
    ]
    built = build(Stored("x", factors.structure, tuple(specs), layer.bias, layer.stage), module)
    state = dict(zip(names, factors.weights, strict=True))
    if layer.bias:
        state[bias_name(factors.structure)] = module.get_parameter("bias").detach()
    built.load_state_dict(state)
    if layer.kind.is_indexed:
        x = torch.arange(prod(shape)).reshape(shape)
    else:
        x = torch.randn(shape, generator=Generator().manual_seed(1))
    composed = torch.func.functional_call(module, {"weight": factors.dense(layer.stage)}, x)
    torch.testing.assert_close(built(x), composed, rtol=1e-4, atol=1e-5)


@CASES
def test_a_stored_structure_is_read_again(name: str, case: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer = layer_of(case[0])
    structure = make(name).blueprint(layer, tuple(1 for _ in make(name).max_ranks(layer)))
    pairs = zip(tensor_names(structure), tensor_shapes(structure), strict=True)
    specs = {f"x.{n}": TensorSpec(f"x.{n}", shape, "float32", 4) for n, shape in pairs}
    found = find_structures(specs, {"x": DenseLayer(layer.kind, layer.weight.shape, layer.groups)})
    saves = sum(spec.numel for spec in specs.values()) < layer.weight.numel
    assert [(stored.structure, stored.replaced) for stored in found] == [(structure, layer.stage)] * saves


@NAMES
def test_factors_are_balanced(name: str) -> None:
    module = some_case(name)
    layer, weight = layer_of(module), module.get_parameter("weight").detach()
    factors = factorize(name, layer, weight, tuple(max(rank // 3, 1) for rank in make(name).max_ranks(layer)))
    weights = {id(leaf): weight for (_, leaf), weight in zip(leaves(factors.structure), factors.weights, strict=True)}
    chains = chains_in(factors.structure)
    assert chains
    for chain in chains:
        stages = [weights[id(leaf)] for _, leaf in leaves(chain) if isinstance(leaf, Stage)]
        norms = [float(torch.linalg.vector_norm(weight)) for weight in stages]
        assert len(norms) >= 2
        assert max(norms) / min(norms) < 1 + 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@NAMES
def test_no_factor_has_subnormal_numbers(name: str, dtype: torch.dtype) -> None:
    """Channels that weight decay has brought near the smallest normal number would slow down the factors."""
    module = some_case(name)
    layer, weight = layer_of(module), module.get_parameter("weight").detach().clone()
    weight[::2] *= 100 * torch.finfo(torch.promote_types(torch.float32, dtype)).tiny if dtype != torch.float16 else 1e-7
    ranks = tuple(max(rank // 2, 1) for rank in make(name).max_ranks(layer))
    factors = make(name).factorize(layer, weight, ranks, dtype=dtype, generator=Generator().manual_seed(0))
    stages = [tensor for tensor in factors.weights if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in stages} == {dtype}
    assert not any(bool(subnormals(tensor).any()) for tensor in stages)


@NAMES
def test_a_zero_weight_is_reproduced_exactly(name: str) -> None:
    module = some_case(name)
    layer, weight = layer_of(module), torch.zeros_like(module.get_parameter("weight"))
    factors = factorize(name, layer, weight, tuple(1 for _ in make(name).max_ranks(layer)))
    assert factors.error == 0
    assert factors.dense(layer.stage).count_nonzero() == 0


@CASES
def test_errors_are_between_the_bounds_by_the_tails(name: str, case: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, weight = layer_of(case[0]), case[0].get_parameter("weight").detach()
    ranks = tuple(max(rank // 2, 1) for rank in make(name).max_ranks(layer))
    factors = factorize(name, layer, weight, ranks)
    spectra = make(name).spectra(layer, weight)
    tails = [spectrum.tail(rank) / spectrum.frobenius_norm for spectrum, rank in zip(spectra, ranks, strict=True)]
    assert factors.error <= sqrt(sum(tail**2 for tail in tails)) * (1 + 1e-5) + 1e-6
    if factors.excess is not None:  # else nothing is claimed about the best factors
        assert factors.error >= max(tails) * (1 - 1e-5)
        assert factors.error <= max(tails) * (1 + factors.excess) * (1 + 1e-4) + 1e-6


def test_layers_that_are_refused_are_replaced_by_the_default() -> None:
    found = {kind: Decompositions("tucker", Solver()).names_for(layer_of(case[0])) for kind, case in LAYERS.items()}
    names = {kind: name for kind, (name,) in found.items()}
    taken = {kind for kind, name in names.items() if name == "tucker"}
    assert taken == {"conv1d", "conv2d", "conv2d-dilated", "conv2d-reflect", "conv3d"}
    assert set(names.values()) == {"tucker", DEFAULT_DECOMPOSITION}
