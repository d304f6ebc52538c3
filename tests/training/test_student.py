from pathlib import Path

import pytest
import torch
from torch import nn

import lrzip
from lrzip.core.errors import LrzipError, UsageError
from lrzip.training.student import load_student
from tests.support.checkpoints import onnx_model
from tests.support.networks import seeded
from tests.support.tasks import Classifier, classes, write_compressed


class Attending(nn.Module):
    """Attention and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(32, 2), nn.Linear(32, 32)


def test_student_and_teacher_have_the_weights_of_their_files(tmp_path: Path) -> None:
    small = write_compressed(tmp_path)
    loaded = load_student(small, Classifier(), tmp_path / "dense.pt")
    assert isinstance(loaded.student.get_submodule("fc1"), nn.Sequential)
    assert loaded.teacher is not None
    dense, stored = seeded(Classifier), torch.load(small)["state_dict"]
    assert torch.equal(loaded.teacher.get_parameter("fc1.weight"), dense.get_parameter("fc1.weight"))
    assert torch.equal(loaded.student.get_parameter("fc1.1.weight"), stored["fc1.1.weight"])
    assert list(loaded.modules) == ["fc1"]
    assert set(loaded.matched.specs) == set(loaded.student.state_dict())


def test_without_a_teacher_there_is_none(tmp_path: Path) -> None:
    assert load_student(write_compressed(tmp_path), Classifier(), None).teacher is None


def test_names_are_those_of_the_file(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in seeded(Classifier).state_dict().items()}
    torch.save(state, tmp_path / "wrapped.pt")
    loaded = load_student(tmp_path / "wrapped.pt", Classifier(), None)
    assert loaded.matched.specs["fc1.weight"].name == "module.fc1.weight"
    assert len(loaded.matched.specs) == len(state)


def test_the_projections_of_attention_are_not_compared(tmp_path: Path) -> None:
    torch.save(seeded(Attending).state_dict(), tmp_path / "dense.pt")
    lrzip.compress(tmp_path / "dense.pt", tmp_path / "small.pt", rank=2, model=Attending())
    loaded = load_student(tmp_path / "small.pt", Attending(), None)
    assert any(".in_proj." in name for name in loaded.matched.specs)
    assert "head" in loaded.modules
    assert not any("in_proj" in name for name in loaded.modules)


def test_weights_need_their_architecture(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"finetune needs `model=PKG\.MOD:NET`"):
        load_student(write_compressed(tmp_path), None, None)


def test_an_onnx_program_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(LrzipError, match="is a program, which cannot be trained"):
        load_student(onnx_model(tmp_path), None, None)


def test_a_program_of_torch_is_its_own_network(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(seeded(Classifier), (torch.zeros(3, 12),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "m.pt2")
    loaded = load_student(tmp_path / "m.pt2", None, None, trust=True)
    assert set(loaded.matched.specs) >= {"fc1.weight", "fc2.bias"}
    x = classes(5)[0]
    with torch.no_grad():
        assert torch.allclose(loaded.student.eval()(x), seeded(Classifier)(x), atol=1e-6)
