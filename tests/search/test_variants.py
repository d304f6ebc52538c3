import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import UsageError
from lrzip.core.options import Factoring, Selection
from lrzip.formats.live import LiveSource
from lrzip.networks.weights import is_parameter
from lrzip.search.variants import Variants
from tests.support.networks import seeded
from tests.support.tasks import Classifier, samples_of


class Mixed(nn.Module):
    """One layer of each kind: embedding, attention, convolution, transposed convolution and linear."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.conv = nn.Conv1d(16, 24, 3, padding=1, groups=2)
        self.back = nn.ConvTranspose1d(24, 16, 3)
        self.head = nn.Linear(16, 12)

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words)
        x = self.attention(x, x, x, need_weights=False)[0]
        x = self.back(torch.relu(self.conv(x.mT))).mT
        out: Tensor = self.head(x.mean(1))
        return out


def parameters(model: nn.Module) -> int:
    return sum(spec.numel for spec in LiveSource(model).tensors().values() if is_parameter(spec))


@pytest.fixture
def words() -> Tensor:
    return torch.randint(40, (5, 7), generator=torch.Generator().manual_seed(0))


def test_every_kind_of_chain_is_merged_and_rebuilt(words: Tensor) -> None:
    variants = Variants(seeded(Mixed).eval())
    ranks = {candidate.layer.name: (3,) for candidate in variants.candidates}
    assert len(ranks) == 5
    small = variants.factorized(ranks)
    state = small.network.state_dict()
    assert small.ranks == ranks
    assert parameters(small.network) == variants.parameters(ranks)
    dense, again = variants.dense(state), variants.rebuilt(state, ranks)
    assert parameters(dense) == parameters(variants.model)
    assert again.ranks == ranks
    assert torch.equal(again.network(words), small.network(words))
    # A product of rank 3 is summed in another order: some tens of roundings of float32, eps 1.2e-7.
    torch.testing.assert_close(dense(words), small.network(words), rtol=1e-4, atol=1e-5)


def test_merged_factors_are_factorized_again_without_loss(words: Tensor) -> None:
    variants = Variants(seeded(Mixed).eval())
    ranks = {"head": (4,), "table": (5,)}
    small = variants.factorized(ranks).network
    dense = variants.with_weights(variants.dense(small.state_dict()))
    torch.testing.assert_close(dense.factorized(ranks).network(words), small(words), rtol=1e-4, atol=1e-5)
    assert [int(item.spectra[0].values.gt(1e-4).sum()) for item in dense.candidates if item.layer.name == "head"] == [4]


def test_layers_whose_factors_save_nothing_stay_dense() -> None:
    variants = Variants(seeded(Classifier).eval())
    first = variants.candidates[0]
    found = variants.factorized({first.layer.name: first.max_ranks})
    assert found.ranks == {}
    assert parameters(found.network) == parameters(variants.model) == variants.parameters({"fc1": first.max_ranks})


def test_one_layer_is_factorized_even_where_that_saves_nothing() -> None:
    variants = Variants(seeded(Classifier).eval())
    candidate = variants.candidates[0]
    model = variants.with_one_factorized("fc1", candidate.max_ranks)
    assert parameters(model) > parameters(variants.model)
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), variants.model(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(variants.with_one_factorized("fc1", (1,))(x), variants.model(x), atol=1e-2)


def test_a_budget_is_an_upper_limit() -> None:
    variants = Variants(seeded(Mixed).eval())
    limit = int(0.6 * parameters(variants.model))
    found = variants.within(limit)
    assert 0.9 * limit < parameters(found.network) <= limit
    assert parameters(found.network) == variants.parameters(found.ranks)


def test_the_largest_ranks_of_a_family_are_within_the_limit_and_the_next_ones_are_not() -> None:
    variants = Variants(seeded(Mixed).eval())
    limit = int(0.6 * parameters(variants.model))
    names = [item.layer.name for item in variants.candidates]
    ranks = variants.largest_ranks(limit, lambda share: {name: (max(1, round(share * 12)),) for name in names})
    next_ranks = {name: (rank + 1,) for name, (rank,) in ranks.items()}
    assert variants.parameters(ranks) <= limit < variants.parameters(next_ranks)


def test_the_least_parameters_are_those_of_rank_one() -> None:
    variants = Variants(seeded(Classifier).eval())
    assert variants.least_parameters(["fc1"]) == parameters(variants.model) - 12 * 32 + (12 + 32)
    assert variants.least_parameters([]) == parameters(variants.model)


def test_only_and_skip_select_the_candidates() -> None:
    variants = Variants(seeded(Mixed), Selection(only=["conv", "head"], skip=["conv"]))
    assert [item.layer.name for item in variants.candidates] == ["head"]
    with pytest.raises(lrzip.LrzipError, match="matches no layer"):
        Variants(seeded(Mixed), Selection(only=["nothing"]))


class Branching(Classifier):
    """A network that torch.export cannot trace, with control flow that depends on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if bool(x.sum() > 1e9) else x + 1)


@pytest.mark.parametrize("kind", [Classifier, Branching])
def test_calibration_lowers_the_error_of_outputs_even_where_export_fails(kind: type[nn.Module]) -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, 12)
    model = seeded(kind).eval()
    plain, calibrated = (Variants(model, samples=samples) for samples in (None, samples_of(x, None)))
    both = plain, calibrated
    for pair in (
        [variants.within(400) for variants in both],
        [variants.factorized({"fc1": (4,)}) for variants in both],
    ):
        with torch.no_grad():
            errors = [float((variant.network(x) - model(x)).norm()) for variant in pair]
        assert errors[1] < errors[0]


def test_a_search_needs_one_decomposition() -> None:
    with pytest.raises(UsageError, match="`decomposition=auto` is for rank rules"):
        Variants(nn.Sequential(nn.Linear(30, 20)), factoring=Factoring(decomposition="auto"))
