"""States of trainings that are damaged, hostile or of another training."""

import copy
import io
import zipfile
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lrzip.core.documents import Place, record
from lrzip.core.errors import LrzipError
from lrzip.training.outcomes import Epoch
from lrzip.training.processes import make_accelerator
from lrzip.training.resume_file import check_state
from lrzip.training.resuming import ResumeFile, TrainingProgress
from lrzip.training.settings import Settings
from lrzip.training.weights import Weights, place
from tests.support.damage import WRONG, damaged, paths, with_value, without

IDENTITY: dict[str, Any] = {"lr": 0.01, "seed": 0}


def trained(settings: Settings | None = None) -> Weights:
    weights = place(nn.Linear(2, 3), settings or Settings(), make_accelerator("cpu", "no"))
    step(weights)
    return weights


def step(weights: Weights) -> None:
    weights.network(torch.ones(2, 2)).square().sum().backward()
    weights.optimizer.step()
    weights.optimizer.zero_grad()


def document(folder: Path, settings: Settings | None = None) -> dict[str, Any]:
    """Return the content of the state of a training, and write it to `state.pt`."""
    weights = trained(settings)
    progress = TrainingProgress(
        step=5,
        epochs=[Epoch(0, 0, 0.0, None, {"accuracy": 0.5}, 1.0), Epoch(1, 4, 0.01, 2.0, {"accuracy": 0.75}, 2.0)],
        losses=[1.5],
        best=weights.state(),
    )
    file = ResumeFile(folder / "state.pt", IDENTITY, ["accuracy"])
    file.save(progress, weights, make_accelerator("cpu", "no"), seconds=7.0)
    content: dict[str, Any] = torch.load(folder / "state.pt")
    return content


def restore(path: Path, identity: dict[str, Any] | None = None) -> str | None:
    """Return why a state is refused, in one line, or None if it can be trained from."""
    weights = trained()
    try:
        ResumeFile(path, identity or IDENTITY, ["accuracy"]).restore(weights, make_accelerator("cpu", "no"))
    except LrzipError as error:
        assert str(error).startswith(f"`{path}`")
        assert str(error).isprintable()
        return str(error)
    step(weights)
    return None


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_damaged_states_are_refused_or_can_be_trained_from(optimizer: str, tmp_path: Path) -> None:
    settings = Settings(optimizer=optimizer)
    content, weights = document(tmp_path, settings), trained(settings)
    usable = 0
    for what, changed in damaged(content):
        try:
            state = check_state(record(changed, Place("`state.pt`", "Remove it.")), weights, ["accuracy"], {})
        except LrzipError as error:
            assert str(error).startswith("`state.pt`: `"), what
            assert str(error).isprintable(), what
        else:
            usable += 1
            weights.load(state.model, copy.deepcopy(state.optimizer))
            step(weights)
    assert usable < sum(1 for _ in damaged(content)) / 3


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    content, weights = document(tmp_path), trained()
    found = 0
    for path in paths(content):
        tensor: Any = reduce(_item, path, content)
        if not isinstance(tensor, torch.Tensor):
            continue
        for other in (
            *(
                tensor.flatten()[None],
                tensor[..., None][..., :0],
                tensor.to("meta"),
                torch.full_like(tensor, torch.nan),
            ),
            *(tensor.unsqueeze(0).to_sparse(), *(torch.full_like(tensor, bad) for bad in (torch.nan, torch.inf))),
        ):
            if path[-1] == "step" and other.numel() == 1 and other.layout == torch.strided and not other.is_meta:
                continue  # one number of any shape
            found += 1
            with pytest.raises(LrzipError, match=rf"`{path[0]}.*{path[-1]}` (must|holds)"):
                changed = with_value(content, path, other)
                check_state(record(changed, Place("`state.pt`", "Remove it.")), weights, ["accuracy"], {})
    assert found > 40


@pytest.mark.parametrize("key", ["lrzip_training", "settings", "model", "optimizer", "best", "step", "history", "loss"])
def test_damaged_files_are_refused(key: str, tmp_path: Path) -> None:
    content, path = document(tmp_path), tmp_path / "state.pt"
    assert restore(path) is None
    for value in (torch.ones(2, 2), torch.ones(2, 2, device="meta"), *WRONG):
        torch.save({**content, key: value}, path)
        assert restore(path) or value in ([], [1], {}, 0, 7), value
    torch.save(without(content, (key,)), path)
    assert "is not the state of a training by this version" in (restore(path) or "")


@pytest.mark.parametrize("legacy", [False, True])
def test_files_cut_anywhere_are_refused(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save(document(tmp_path), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    assert restore(path) is None
    for length in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:length])
        assert restore(path)


PICKLES = {
    "deep key": b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
    "deep value": b"\x80\x02}X\x01\x00\x00\x00a)" + b"\x85" * 200_000 + b"s.",
    "bytearray": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R.",
    "code": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85R.",
    "recursive": b"\x80\x02]q\x00h\x00a.",
    "many": b"\x80\x02]" + b"".join(b"(h%cq%ct" % (0, 0) for _ in range(3)) + b".",
}


@pytest.mark.parametrize("name", PICKLES)
def test_hostile_pickles_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", PICKLES[name])
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    assert restore(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    torch.save({"model": {}}, tmp_path / "weights")
    buffer = io.BytesIO()
    torch.save([torch.ones(2)], buffer)
    (tmp_path / "list").write_bytes(buffer.getvalue())
    for name in ("text", "empty", "weights", "list", "."):
        assert restore(tmp_path / name)


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ({"lr": 0.02, "seed": 0}, "belongs to a training with lr 0.01, and now it is 0.02"),
        ({"lr": 0.01}, "belongs to a training with seed 0, and now it is None"),
        ({**IDENTITY, "warmup": 0.5}, "belongs to a training with warmup None, and now it is 0.5"),
    ],
)
def test_the_state_of_another_training_is_refused(identity: dict[str, Any], message: str, tmp_path: Path) -> None:
    document(tmp_path)
    assert message in (restore(tmp_path / "state.pt", identity) or "")


def test_the_state_of_another_network_is_refused(tmp_path: Path) -> None:
    content = document(tmp_path)
    for changed, message in (
        (without(content, ("model", "bias")), "`model.bias` is missing"),
        (with_value(content, ("model", "other"), torch.ones(1)), "`model.other` is not a tensor of this network"),
        (with_value(content, ("history", 0, "scores"), {"r2": 0.5}), "`history[0].scores` has other metrics than"),
        (with_value(content, ("best",), {}), "`best` is empty, though"),
    ):
        torch.save(changed, tmp_path / "state.pt")
        assert message in (restore(tmp_path / "state.pt") or "")


def _item(value: Any, key: str | int) -> Any:
    return value[key]
