import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import lrzip
from lrzip.calibration.calibrator import calibrate
from lrzip.calibration.corrections import Corrections
from lrzip.calibration.settings import CalibrationSettings
from lrzip.calibration.stored import holds_statistics, load_statistics, save_statistics
from lrzip.calibration.subjects import Network
from lrzip.core.errors import LrzipError, UsageError
from tests.support.calibration import calibration_of, images, layers_of, resnet, settings_of
from tests.support.damage import damaged, without
from tests.support.networks import ResNet


def test_statistics_are_read_as_they_were_written(tmp_path: Path) -> None:
    model, path = resnet(images()), tmp_path / "s.safetensors"
    layers = layers_of(model)
    written = calibrate(Network(model), images(), layers, settings_of("none"), measured=True)
    save_statistics(written, path)
    assert holds_statistics(path)
    read = load_statistics(path, layers)
    assert (read.count, read.examples, read.run) == (written.count, str(path), None)
    assert read.statistics.keys() == written.statistics.keys() >= {"conv1", "linear"}
    for name, moments in written.statistics.items():
        other = read.statistics[name]
        assert torch.equal(moments.second, other.second)
        assert torch.equal(moments.first, other.first)
        assert moments.measured is not None
        assert (other.count, other.fisher, other.measured) == (moments.count, moments.fisher, moments.measured)


def test_the_keys_of_the_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    model = nn.Sequential(nn.Linear(12, 20))
    save_statistics(calibration_of(model, torch.randn(20, 12)), path)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"0.second", "0.first"}
        document = json.loads(file.metadata()["lrzip.calibration"])
    assert document.keys() == {"examples", "count", "layers"}
    assert document["layers"]["0"].keys() == {"count", "influence", "measured"}


@pytest.mark.parametrize("name", ["weights.safetensors", "damaged.safetensors", "missing.safetensors", "x.npz"])
def test_other_files_hold_no_statistics(name: str, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(3)}, tmp_path / "weights.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    (tmp_path / "x.npz").write_bytes(b"no")
    assert not holds_statistics(tmp_path / name)


def test_statistics_replace_the_network_and_the_data(tmp_path: Path) -> None:
    x = images()
    model = resnet(x)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    kept = tmp_path / "statistics.safetensors"
    settings = CalibrationSettings(corrections=Corrections(), save=kept)
    outputs = [tmp_path / name for name in ("a.pt", "b.pt")]
    lrzip.compress(tmp_path / "model.pt", outputs[0], ratio=2, model=ResNet(1), calibrate=x, calibration=settings)
    report = lrzip.compress(tmp_path / "model.pt", outputs[1], ratio=2, calibrate=kept)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert report.calibrated
    assert report.calibrated.examples == str(kept)
    options: Any = {"energy": 0.8, "decomposition": "tucker", "dry_run": True}
    assert lrzip.compress(tmp_path / "model.pt", **options, calibrate=kept).plan.factorize
    curve = lrzip.curve(tmp_path / "model.pt", "params=40%,60%", calibrate=kept)
    assert [point.plan.budget.objective for point in curve.points if point.plan.budget] == ["fisher"] * 2


def test_statistics_of_another_network_are_refused(tmp_path: Path) -> None:
    kept = tmp_path / "statistics.safetensors"
    models = {"model": nn.Sequential(nn.Linear(12, 20)), "other": nn.Sequential(nn.Linear(16, 20))}
    for name, model in models.items():
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    save_statistics(calibration_of(models["model"], torch.randn(20, 12)), kept)
    with pytest.raises(LrzipError, match=r"`0` has .* 12.* in it and .* 16.* here"):
        lrzip.compress(tmp_path / "other.pt", rank=2, calibrate=kept)
    with pytest.raises(LrzipError, match="has statistics of none of these layers"):
        load_statistics(kept, layers_of(nn.ModuleDict({"x": nn.Linear(12, 20)})))
    with pytest.raises(UsageError, match="nothing to run"):
        lrzip.compress(tmp_path / "model.pt", rank=2, calibrate=kept, calibration=settings_of("bias"))


def small(folder: Path) -> tuple[Path, nn.Module, dict[str, Any], dict[str, torch.Tensor]]:
    """Return a file of statistics with everything in it, its network, its document and its tensors."""
    model, path = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10)), folder / "s.safetensors"
    torch.save(model.state_dict(), folder / "net.pt")
    found = calibrate(Network(model), torch.randn(40, 12), layers_of(model), settings_of("none"), measured=True)
    save_statistics(found, path)
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["lrzip.calibration"])
    return path, model, document, load_file(path)


def rewrite(path: Path, document: object, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, path, {"lrzip.calibration": json.dumps(document)})


def outcome(path: Path, objective: str | None = None) -> str | None:
    """Return why statistics are refused, in one line, or None after a compression by them."""
    try:
        report = lrzip.compress(
            path.with_name("net.pt"), budget="params=80%", calibrate=path, dry_run=True, objective=objective
        )
    except LrzipError as error:
        return str(error)
    assert report.plan.factorize
    return None


def test_damaged_documents_are_refused_or_usable(tmp_path: Path) -> None:
    path, model, document, tensors = small(tmp_path)
    layers, usable = layers_of(model), 0
    for what, changed in damaged(document):
        rewrite(path, changed, tensors)
        try:
            load_statistics(path, layers)
        except LrzipError as error:
            assert str(error).startswith(f"`{path}`"), what
            assert str(error).isprintable(), what
        else:
            usable += 1
            assert outcome(path) is None, what
            assert (outcome(path, "sensitivity") or "measured").isprintable(), what
    assert usable < sum(1 for _ in damaged(document)) / 3


@pytest.mark.parametrize("field", ["examples", "count", "layers", "layers.0.count", "layers.0.measured.ranks"])
def test_a_field_that_is_missing_is_named(field: str, tmp_path: Path) -> None:
    path, _, document, tensors = small(tmp_path)
    rewrite(path, without(document, tuple(field.split("."))), tensors)
    assert outcome(path) == f"`{path}`: `{field}` is missing. Calibrate again, with `save_statistics=FILE`."


@pytest.mark.parametrize("part", ["0.first", "0.second"])
@pytest.mark.parametrize("change", ["missing", "flat", "empty", "float32", "int64", "complex64", "scalar"])
def test_tensors_of_other_kinds_are_refused(part: str, change: str, tmp_path: Path) -> None:
    path, _, document, tensors = small(tmp_path)
    tensor = tensors.pop(part)
    changes = {"flat": tensor.flatten(), "empty": tensor[:0], "scalar": tensor.sum()}
    if change != "missing":
        tensors[part] = changes[change] if change in changes else tensor.to(getattr(torch, change))
    rewrite(path, document, tensors)
    assert part in (outcome(path) or "") or "is of another network: `0`" in (outcome(path) or "")


@pytest.mark.parametrize("part", ["0.first", "0.second"])
@pytest.mark.parametrize("where", ["one", "all"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, -3.0, 1e308, 1e31, 1e-300, 0.0])
def test_moments_that_no_inputs_have_are_refused(part: str, where: str, value: float, tmp_path: Path) -> None:
    path, _, document, tensors = small(tmp_path)
    (tensors[part].view(-1)[:1] if where == "one" else tensors[part]).fill_(value)
    rewrite(path, document, tensors)
    possible = part == "0.first" and abs(value) < 1e-200
    assert (outcome(path) is None) == possible


def test_files_cut_anywhere_are_refused(tmp_path: Path) -> None:
    path, model, _, _ = small(tmp_path)
    content = path.read_bytes()
    for length in (*range(0, 600, 7), *range(600, len(content), 997), len(content) - 1):
        path.write_bytes(content[:length])
        assert not holds_statistics(path)
        with pytest.raises(LrzipError, match=r"s\.safetensors` is damaged"):
            load_statistics(path, layers_of(model))


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", "null", "\x00", '{"count": 1' + "0" * 5000 + "}"])
def test_metadata_that_is_no_document_is_refused(content: str, tmp_path: Path) -> None:
    path, _, _, tensors = small(tmp_path)
    save_file(tensors, path, {"lrzip.calibration": content})
    assert outcome(path)
