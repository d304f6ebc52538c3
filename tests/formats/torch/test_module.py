"""Modules saved by torch.save are read without executing anything, and rewritten with trust."""

import pickle
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint
from lrzip.core.layers import Keep, Layer
from lrzip.formats.open import open_checkpoint
from tests.support.networks import Net, Sound, Zoo, seeded
from tests.support.shell import error_of, run

EXACT = 1 - 1e-9


def saved(path: Path, content: object, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@torch.no_grad()
def output_of(model: nn.Module, *inputs: Tensor) -> Tensor:
    out: Tensor = model(*inputs)
    return out


class Tricky(nn.Module):
    """A module with non-persistent buffers, missing parameters, and views."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"a": nn.Linear(8, 6), "b": nn.Linear(8, 6, bias=False)})
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.register_buffer("nothing", None)
        self.turned = nn.Parameter(torch.rand(4, 5).T)
        self.low = nn.Linear(4, 4).bfloat16()
        self.again = self.blocks["a"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("factory", [Net, Sound, Zoo, Tricky])
def test_weights_are_those_of_the_module(factory: type[nn.Module], legacy: bool, tmp_path: Path) -> None:
    model = seeded(factory)
    path = saved(tmp_path / "a.pt", model, legacy=legacy)
    for trust in (False, True):
        with open_checkpoint(path, trust=trust) as checkpoint:
            assert checkpoint.format == "module"
            assert list(checkpoint.tensors()) == list(model.state_dict())
            for name, tensor in model.state_dict().items():
                spec = checkpoint.tensors()[name]
                assert torch.equal(checkpoint.read(name), tensor)
                assert (spec.shape, spec.nbytes) == (tuple(tensor.shape), tensor.nbytes)


def test_a_module_whose_class_is_gone_is_read_and_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(20, 20)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = saved(tmp_path / "a.pt", __import__("gone").Net())
    monkeypatch.undo()
    del sys.modules["gone"]
    assert run("compress", path, "--rank", "2", "--trust", "-o", "b.pt", cwd=tmp_path).returncode == 0
    del sys.modules["gone"]
    (tmp_path / "gone.py").unlink()
    text = error_of(run("compress", path, "--rank", "2", "--trust"), 1)
    assert "of class `gone.Net`, which cannot be loaded: No module named 'gone'" in text
    assert "leave out `--trust`, which gives its state_dict" in text
    report = lrzip.compress(path, rank=2)
    assert report.dropped == (("the code and attributes of `gone.Net`", "a state_dict has no place for it"),)
    state = torch.load(tmp_path / "a.lrzip.pt", weights_only=True)
    assert list(state) == ["fc.0.weight", "fc.1.weight", "fc.1.bias"]


@pytest.mark.parametrize("legacy", [False, True])
def test_with_trust_the_module_itself_is_rewritten(legacy: bool, tmp_path: Path) -> None:
    model = seeded(Zoo)
    path = saved(tmp_path / "a.pt", model, legacy=legacy)
    report = lrzip.compress(path, tmp_path / "b.pt", energy=EXACT, trust=True)
    assert report.dropped == ()
    names = {result.decision.layer.name for result in report.results}
    assert names == {"stem", "grouped", "up", "words", "mix", "head"}
    reasons = {keep.name: keep.reason for keep in report.plan.keep}
    assert reasons["tied"] == "shared with tokens.weight"
    assert reasons["attention.out_proj"] == "read directly by nn.MultiheadAttention"
    small = torch.load(tmp_path / "b.pt", weights_only=False)
    assert isinstance(small, Zoo)
    assert isinstance(small.stem, nn.Sequential)
    assert small.tied.weight is small.tokens.weight
    for batch in (1, 4):
        # Sums of some 200 products in float32, several layers deep.
        torch.testing.assert_close(
            output_of(small, *Zoo.inputs(batch)), output_of(model, *Zoo.inputs(batch)), rtol=1e-4, atol=1e-5
        )
    # The same weights as the state_dict of the rewritten network, by the network's own loader.
    lrzip.compress(path, tmp_path / "weights.safetensors", energy=EXACT, trust=True)
    loaded = lrzip.load_into(seeded(Zoo, 1), tmp_path / "weights.safetensors")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name])


def test_a_module_that_is_one_layer_becomes_a_sequential(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", nn.Linear(12, 10))
    lrzip.compress(path, tmp_path / "b.pt", rank=2, trust=True)
    small = torch.load(tmp_path / "b.pt", weights_only=False)
    assert [type(stage) for stage in small] == [nn.Linear, nn.Linear]
    with pytest.raises(LrzipError, match=r"`0\.weight` is not a layer that factors can replace"):
        lrzip.export(tmp_path / "b.pt", "dense", tmp_path / "c.pt", trust=True)
    lrzip.export(tmp_path / "b.pt", "dense", tmp_path / "c.pt")
    assert list(torch.load(tmp_path / "c.pt", weights_only=True)) == ["weight", "bias"]


def test_a_module_within_a_checkpoint_gives_its_state_dict(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"epoch": 3, "model": seeded(Net), "ema": None})
    report = lrzip.compress(path, tmp_path / "b.pt", rank=2)
    assert [name for name, _ in report.dropped] == [
        "the code and attributes of `tests.support.networks.Net`",
        "epoch",
        "ema",
    ]
    loaded = lrzip.load_into(Net(), tmp_path / "b.pt")
    assert isinstance(loaded.conv1, nn.Sequential)
    assert loaded.bn1.weight.equal(seeded(Net).get_parameter("bn1.weight"))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.key == "model"


def test_factors_keep_the_dtype_that_the_module_computes_in(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", seeded(Net))
    with pytest.raises(LrzipError, match="cannot be float16"):
        lrzip.compress(path, tmp_path / "b.pt", rank=2, dtype="float16", trust=True)
    lrzip.compress(path, tmp_path / "b.pt", rank=2, dtype="float16")
    assert torch.load(tmp_path / "b.pt", weights_only=True)["fc1.0.weight"].dtype == torch.float16


def test_kinds_are_exact_with_trust_only(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", seeded(Zoo))
    with open_checkpoint(path) as checkpoint:
        inferred = {item.name: item for item in checkpoint.layers()}
    with open_checkpoint(path, trust=True) as checkpoint:
        exact = {item.name: item for item in checkpoint.layers()}
    assert isinstance(inferred["up"], Keep)
    up, grouped = exact["up"], exact["grouped"]
    assert isinstance(up, Layer)
    assert str(up.kind) == "conv_transpose2d"
    assert isinstance(grouped, Layer)
    assert grouped.groups == 4


def test_hostile_modules_execute_nothing_without_trust(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (str(marker),)

    model = seeded(Net)
    model.__dict__["evil"] = Evil()
    path = saved(tmp_path / "a.pt", model)
    assert lrzip.analyze(path).layers
    lrzip.compress(path, tmp_path / "b.pt", rank=2)
    lrzip.compress(path, tmp_path / "b.safetensors", rank=2)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_small_file_cannot_unfold_to_a_huge_one(tmp_path: Path) -> None:
    inner: nn.Module = nn.Linear(2, 2)
    for _ in range(40):
        outer = nn.Module()
        outer.add_module("a", inner)
        outer.add_module("b", inner)
        inner = outer
    path = saved(tmp_path / "a.pt", inner)
    with pytest.raises(UnsupportedCheckpoint, match="unfolds to more entries"):
        open_checkpoint(path)


def test_sparse_buffers_of_a_module_are_left_out_and_listed(tmp_path: Path) -> None:
    model = seeded(Net)
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    path = saved(tmp_path / "a.pt", model)
    report = lrzip.compress(path, tmp_path / "b.pt", rank=2)
    assert [name for name, _ in report.dropped] == ["the code and attributes of `tests.support.networks.Net`", "sparse"]


def test_truncated_modules_are_refused(tmp_path: Path) -> None:
    for legacy in (False, True):
        path = saved(tmp_path / "a.pt", seeded(Net), legacy=legacy)
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(UnsupportedCheckpoint, match="damaged"):
            open_checkpoint(path)


def nested(entry: str, **others: object) -> dict[str, object]:
    return {"epoch": 3, entry: seeded(Net), "best": [1, 2], "optimizer": {"state": {}}, **others}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(("entry", "others"), [("model", {}), ("ema", {"model": seeded(Net, 1)}), ("x", {"y": None})])
def test_a_module_inside_other_entries_is_found_and_with_trust_rewritten(
    entry: str, others: dict[str, object], trust: bool, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.pt", nested(entry, **others))
    report = lrzip.compress(path, tmp_path / "b.pt", rank=2, trust=trust)
    assert (report.entry.key, report.entry.others) == (entry, tuple(name for name in others if others[name]))
    result = torch.load(tmp_path / "b.pt", weights_only=False)
    if not trust:
        assert lrzip.load_into(Net(), tmp_path / "b.pt")
        return
    assert list(result) == ["epoch", entry, "best", *others]
    assert isinstance(result[entry].fc1, nn.Sequential)
    expected = lrzip.factorize(seeded(Net), rank=2)
    assert torch.equal(
        output_of(result[entry], torch.ones(1, 3, 16, 16)), output_of(expected, torch.ones(1, 3, 16, 16))
    )


def test_classes_in_the_working_directory_are_importable_with_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from torch import nn\nclass Net(nn.Sequential):\n    pass\nclass Args:\n    lr = 1\n"
    (tmp_path / "here_only.py").write_text(source)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        import here_only  # type: ignore[import-not-found]

        saved(tmp_path / "a.pt", {"model": here_only.Net(nn.Linear(20, 20)), "args": here_only.Args()})
        saved(tmp_path / "b.pt", {"state_dict": {"fc.weight": torch.rand(20, 20)}, "args": here_only.Args()})
    del sys.modules["here_only"]
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        lrzip.compress(tmp_path / f"{name}.pt", tmp_path / f"{name}.small.pt", rank=2, trust=True)
        assert (tmp_path / f"{name}.small.pt").exists()


def test_several_modules_are_not_loaded_at_once(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"G": seeded(Net), "D": seeded(Sound)})
    with pytest.raises(UnsupportedCheckpoint, match="`key=G, D` names several modules"):
        lrzip.compress(path, tmp_path / "b.pt", rank=2, key=["G", "D"], trust=True)
    report = lrzip.compress(path, tmp_path / "b.pt", rank=2, key=["G", "D"])
    assert {decision.layer.name.split(".")[0] for decision in report.plan.factorize} == {"G", "D"}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", [list, tuple])
def test_dicts_that_are_pickled_as_pairs_are_read(legacy: bool, kind: type, tmp_path: Path) -> None:
    class Pickler(pickle._Pickler):
        dispatch: ClassVar[dict[Any, Any]] = {**pickle._Pickler.dispatch}

    def save(self: Any, value: dict[Any, Any]) -> None:  # as Python 2 does
        self.save_reduce(OrderedDict, ([kind(pair) for pair in value.items()],), obj=value)

    Pickler.dispatch[OrderedDict] = save
    module = seeded(Net)
    for inner in module.modules():
        vars(inner).update({name: OrderedDict(value) for name, value in vars(inner).items() if isinstance(value, dict)})
    python2: Any = SimpleNamespace(
        __name__="pickle", Pickler=Pickler, dump=lambda o, f, protocol: Pickler(f, protocol).dump(o)
    )
    for content in (module, {"state_dict": OrderedDict(module.state_dict()), "args": Namespace(lr=1)}):
        path = tmp_path / "a.pt"
        torch.save(content, path, pickle_module=python2, _use_new_zipfile_serialization=not legacy)
        with open_checkpoint(path) as checkpoint:
            assert list(checkpoint.tensors()) == list(module.state_dict())
