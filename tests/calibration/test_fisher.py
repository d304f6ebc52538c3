import pytest
import torch
from torch import Tensor, nn

from lrzip.calibration.fisher import fisher_sensitivities
from lrzip.calibration.subjects import Network
from lrzip.core.moments import Arguments
from lrzip.networks.programs.trace import export_network
from tests.support.calibration import layers_of


def sensitivities(model: nn.Module, x: Tensor, batches: int = 1, seed: int = 0) -> dict[str, float]:
    parts: list[Arguments] = [((part,), {}) for part in x.chunk(batches)]
    network = Network(model)
    layers = {network.weight_name(layer): layer for layer in layers_of(model)}
    return fisher_sensitivities(export_network(model, *parts[0]), layers, parts, seed=seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_in_a_linear_network_it_is_the_squared_norm_of_what_follows() -> None:
    """For y = Bh and n outputs h, E‖BΔh‖² with noise of unit second moment is ‖B‖²/n; that of y itself is 1."""
    model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 10)).eval()
    found = sensitivities(model, normal(4096, 6))
    expected = float(model.get_parameter("1.weight").detach().square().sum()) / 12
    # The estimate is a mean of 4096 quadratic forms vᵀ(BBᵀ/n)v, of variance 2‖BBᵀ‖²/n² each; 5 standard deviations.
    gram = model.get_parameter("1.weight").detach() @ model.get_parameter("1.weight").detach().mT / 12
    assert found["0"] == pytest.approx(expected, abs=5 * float((2 * gram.square().sum() / 4096).sqrt()))
    # Of y itself the forms are ‖v‖²/10, of variance 2/10.
    assert found["1"] == pytest.approx(1, abs=5 * (0.2 / 4096) ** 0.5)


def test_positions_add_up_and_channels_are_averaged() -> None:
    """Outputs h of 5×5 positions are averaged and scaled by 3: each of them counts 3/25, for 4 channels alike."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = 3 * self.conv(x).mean((2, 3))
            return out

    found = sensitivities(Pooled().eval(), normal(4096, 2, 7, 7))
    # Four outputs with (3/25)² · 25 each, averaged over four channels; forms ‖v‖²/4 have variance 2/4.
    expected = 9 / 25
    assert found["conv"] == pytest.approx(expected, abs=5 * expected * (0.5 / 4096) ** 0.5)


def test_layers_without_influence_on_the_outputs_are_left_out() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.dropped = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x) + torch.relu(self.dropped(x)).detach() * 0
            return out

    assert set(sensitivities(Idle().eval(), normal(16, 6))) == {"used"}


def test_in_place_operations_do_not_change_it() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.Linear(8, 4)]
    found = [
        sensitivities(nn.Sequential(layers[0], nn.ReLU(inplace=inplace), layers[1]).eval(), normal(64, 6))
        for inplace in (False, True)
    ]
    assert found[0] == found[1]
    assert set(found[0]) == {"0", "2"}


def test_batches_are_averaged_and_the_seed_is_all_that_is_random() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
    x = normal(64, 6)
    assert sensitivities(model, x, batches=4) == sensitivities(model, x, batches=4)
    assert sensitivities(model, x, batches=4) != sensitivities(model, x, batches=4, seed=1)
    # The order of the random numbers is that of the samples, so that only sums differ.
    assert sensitivities(model, x, batches=4) == pytest.approx(sensitivities(model, x), rel=1e-5)


def test_a_network_without_any_of_the_layers_has_none() -> None:
    model = nn.Sequential(nn.Linear(6, 4)).eval()
    x = normal(8, 6)
    assert fisher_sensitivities(export_network(model, (x,), {}), {}, [((x,), {})], seed=0) == {}
