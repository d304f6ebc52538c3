from pathlib import Path

import torch
from torch import nn

from lrzip.calibration.subjects import Network, Stored
from lrzip.formats.open import open_checkpoint
from lrzip.formats.protocols import Observable
from tests.support.calibration import layers_of
from tests.support.networks import Zoo, seeded


def test_a_network_names_the_weights_of_its_program() -> None:
    network = Network(seeded(Zoo))
    names = [network.weight_name(layer) for layer in layers_of(network.model)]
    assert "attention.in_proj_weight" in names
    assert set(names) <= network.program((Zoo.inputs(), {})).state_dict.keys()


def test_a_network_has_the_dtype_of_its_parameters_and_any_batch() -> None:
    network = Network(nn.Linear(3, 3, dtype=torch.float64))
    assert (network.dtype, network.batch, network.correctable) == (torch.float64, None, True)
    assert Network(nn.ReLU()).dtype is None


def test_a_program_has_its_own_batch_and_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(12, 12)).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(5, 12),)), tmp_path / "m.pt2")
    with open_checkpoint(tmp_path / "m.pt2", trust=True) as file:
        assert isinstance(file, Observable)
        stored = Stored(file)
        assert (stored.dtype, stored.batch, stored.correctable) == (None, 5, True)
        program = stored.program(((), {}))
        (layer,) = layers_of(model)
        assert stored.weight_name(layer) in program.state_dict
