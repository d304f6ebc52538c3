import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.formats.live import LiveSource
from lrzip.networks.inference import is_parameter
from lrzip.search.variants import Variants
from tests.support.networks import seeded
from tests.support.tasks import Classifier, samples_of


class Mixed(nn.Module):
    """A layer of each kind that chains stand for: an embedding, attention, a convolution, both ways, and linear."""

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


def test_every_kind_of_chain_is_multiplied_back_and_built_again(words: Tensor) -> None:
    variants = Variants.of(seeded(Mixed).eval())
    ranks = {candidate.layer.name: 3 for candidate in variants.candidates}
    assert len(ranks) == 5
    small = variants.factorized(ranks)
    state = small.state_dict()
    assert variants.ranks(state) == ranks
    assert parameters(small) == variants.parameters(ranks) == variants.parameters(variants.ranks(state))
    dense, again = variants.dense(state), variants.built(state)
    assert parameters(dense) == parameters(variants.model)
    assert torch.equal(again(words), small(words))
    # A product of rank 3 is summed in another order: some tens of roundings of float32, eps 1.2e-7.
    torch.testing.assert_close(dense(words), small(words), rtol=1e-4, atol=1e-5)


def test_what_was_multiplied_back_is_factorized_again_without_loss(words: Tensor) -> None:
    variants = Variants.of(seeded(Mixed).eval())
    small = variants.factorized({"head": 4, "table": 5})
    dense = variants.with_weights(variants.dense(small.state_dict()))
    again = dense.factorized({"head": 4, "table": 5})
    torch.testing.assert_close(again(words), small(words), rtol=1e-4, atol=1e-5)
    assert [int(item.spectra[0].values.gt(1e-4).sum()) for item in dense.candidates if item.layer.name == "head"] == [4]


def test_one_layer_alone_may_also_grow() -> None:
    variants = Variants.of(seeded(Classifier).eval())
    candidate = variants.candidates[0]
    model = variants.alone(candidate, candidate.max_ranks[0])
    assert parameters(model) > parameters(variants.model)
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), variants.model(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(variants.alone(candidate, 1)(x), variants.model(x), atol=1e-2)


def test_budgets_and_families_stay_within_and_come_close() -> None:
    variants = Variants.of(seeded(Mixed).eval())
    limit = int(0.6 * parameters(variants.model))
    within = variants.within(limit)
    assert parameters(within) <= limit
    names = [item.layer.name for item in variants.candidates]
    ranks = variants.largest(limit, lambda share: {name: max(1, round(share * 12)) for name in names})
    assert variants.parameters(ranks) <= limit < variants.parameters({name: rank + 1 for name, rank in ranks.items()})
    assert variants.least(names) < limit


def test_only_and_skip_choose_the_candidates() -> None:
    variants = Variants.of(seeded(Mixed), only=["conv", "head"], skip=["conv"])
    assert [item.layer.name for item in variants.candidates] == ["head"]
    with pytest.raises(lrzip.LrzipError, match="matches no layer"):
        Variants.of(seeded(Mixed), only=["nothing"])


class Branching(Classifier):
    """A network that torch.export cannot follow: what it does depends on what it gets."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if bool(x.sum() > 1e9) else x + 1)


@pytest.mark.parametrize("kind", [Classifier, Branching])
def test_examples_choose_the_factors_also_of_what_cannot_be_exported(kind: type[nn.Module]) -> None:
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, 12)
    model = seeded(kind).eval()
    plain, calibrated = (Variants.of(model, examples=examples) for examples in (None, samples_of(x, None)))
    both = plain, calibrated
    for pair in ([variants.within(400) for variants in both], [variants.factorized({"fc1": 4}) for variants in both]):
        with torch.no_grad():
            errors = [float((network(x) - model(x)).norm()) for network in pair]
        assert errors[1] < errors[0]
