"""What every format must keep, over one tiny checkpoint of each."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError
from lrzip.core.factors import Factors
from lrzip.core.layers import Layer
from lrzip.core.plan import Plan
from lrzip.decompositions import DECOMPOSITIONS, DEFAULT_DECOMPOSITION
from lrzip.formats import FORMATS
from lrzip.formats.open import open_checkpoint
from lrzip.formats.protocols import Checkpoint
from lrzip.formats.write import rewrite
from lrzip.pipeline.request import Request
from lrzip.pipeline.session import Session
from lrzip.ranks.ratio import Ratio
from tests.support.checkpoints import BUILDERS, state
from tests.support.networks import Net, seeded


@pytest.fixture(params=BUILDERS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return BUILDERS[request.param](tmp_path)


@pytest.fixture
def checkpoint(path: Path) -> Iterator[Checkpoint]:
    with open_checkpoint(path) as opened:
        yield opened


def digest(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def raw(checkpoint: Checkpoint, name: str) -> bytes:
    return b"".join(bytes(chunk) for chunk in checkpoint.chunks(name))


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def name_of(checkpoint: Checkpoint, plain: str) -> str:
    return next(name for name in checkpoint.tensors() if name.removeprefix("module.") == plain)


def plan_of(checkpoint: Checkpoint, ratio: float = 2) -> Plan:
    return Session(checkpoint, Request(Ratio(ratio))).plan()


def test_specs_and_bytes_are_those_that_were_saved(checkpoint: Checkpoint) -> None:
    for plain, tensor in state().items():
        name = name_of(checkpoint, plain)
        spec = checkpoint.tensors()[name]
        assert (spec.shape, f"torch.{spec.dtype}") == (tuple(tensor.shape), str(tensor.dtype))
        assert raw(checkpoint, name) == bits(tensor)
        assert bits(checkpoint.read(name)) == bits(tensor)


def test_an_empty_plan_keeps_every_tensor_and_every_byte_of_safetensors(path: Path, tmp_path: Path) -> None:
    output = tmp_path / ("out" if path.is_dir() else f"out{path.suffix}")
    with open_checkpoint(path) as source, rewrite(output, source, Plan((), (), "", "")):
        pass
    with open_checkpoint(path) as before, open_checkpoint(output) as after:
        assert list(before.tensors().values()) == list(after.tensors().values())
        assert all(raw(before, name) == raw(after, name) for name in before.tensors())
        assert before.others == after.others
    if path.suffix == ".safetensors":
        assert path.read_bytes() == output.read_bytes()
    if path.is_dir():
        ours, theirs = digest(path), digest(output)
        index = "model.safetensors.index.json"
        assert {name: ours[name] for name in ours if name != index} == {n: theirs[n] for n in theirs if n != index}


def test_all_tensors_are_accounted_for_and_untouched_ones_identical(path: Path, tmp_path: Path) -> None:
    before = digest(path)
    output = tmp_path / ("out" if path.is_dir() else f"out{path.suffix}")
    with open_checkpoint(path) as source:
        plan = plan_of(source)
    report = lrzip.compress(path, output, ratio=2)
    replaced = {decision.layer.weight.name for decision in plan.factorize}
    assert len(replaced) >= 4
    with open_checkpoint(path) as source, open_checkpoint(output) as result:
        expected = {entry.spec.name: entry for entry in plan.layout(source.tensors())}
        assert result.tensors().keys() == expected.keys()
        for name, entry in expected.items():
            assert result.tensors()[name] == entry.spec
            assert not entry.copied or raw(result, name) == raw(source, entry.origin)
        assert {entry.origin for entry in expected.values()} == source.tensors().keys()
        assert result.metadata == source.metadata
        assert [name for name in source.others if name != "optimizer"] == list(result.others)
    assert digest(path) == before
    assert len(report.results) == len(replaced)


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_the_loaded_model_computes_the_product_of_the_factors(name: str, path: Path, tmp_path: Path) -> None:
    output = tmp_path / ("out" if path.is_dir() else f"out{path.suffix}")
    dense = tmp_path / ("dense" if path.is_dir() else f"dense{path.suffix}")
    if name != DEFAULT_DECOMPOSITION and path.name == "huggingface":
        with pytest.raises(LrzipError, match=r"more than two factors.*`--skip` it"):
            lrzip.compress(path, output, decomposition=name, ratio=2)
        return
    lrzip.compress(path, output, decomposition=name, ratio=2)
    lrzip.export(output, "dense", dense)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    factored = lrzip.load_into(WithExtras(), output).eval()
    assert isinstance(factored.get_submodule("conv2"), nn.Sequential)
    multiplied = lrzip.load_into(WithExtras(), dense).eval()
    assert isinstance(multiplied.get_submodule("conv2"), nn.Conv2d)
    # Outputs of a few layers, each a sum of some 1000 products in float32.
    torch.testing.assert_close(factored(x), multiplied(x), rtol=1e-4, atol=1e-5)


def test_a_crash_while_writing_leaves_nothing(path: Path, tmp_path: Path) -> None:
    output = tmp_path / ("out" if path.is_dir() else f"out{path.suffix}")
    listing = sorted(tmp_path.rglob("*"))
    before = digest(path)
    with open_checkpoint(path) as source:
        plan = plan_of(source)
        with pytest.raises(KeyboardInterrupt), rewrite(output, source, plan) as rewriter:
            first = plan.factorize[0]
            weights = tuple(torch.zeros(spec.shape, dtype=torch.float32) for spec in first.outputs)
            rewriter.put(first.layer, Factors(first.structure, weights, 0.0, "none"))
            raise KeyboardInterrupt
    assert sorted(tmp_path.rglob("*")) == listing
    assert digest(path) == before


def test_layers_are_the_same_in_every_format(checkpoint: Checkpoint) -> None:
    found = {item.name: str(item.kind) for item in checkpoint.layers() if isinstance(item, Layer)}
    assert found == {
        "conv1": "conv2d",
        "conv2": "conv2d",
        "fc1": "linear",
        "fc2": "linear",
        "extra.low": "linear",
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_suffix_of_the_output_names_its_format(path: Path, suffix: str, tmp_path: Path) -> None:
    output = tmp_path / f"converted{suffix}"
    report = lrzip.compress(path, output, ratio=2)
    with open_checkpoint(output) as result:
        assert result.format == ("safetensors" if suffix == ".safetensors" else "state_dict")
        assert len(result.tensors()) == len(state()) + len(report.plan.factorize)
    assert lrzip.load_into(WithExtras(), output)


def test_every_registered_format_answers_for_every_file(path: Path) -> None:
    matching = [name for name in FORMATS if FORMATS[name].matches(path)]
    # Any folder may be plain shards, so that format is asked after those that know more.
    assert len(matching) == 1 or matching == ["huggingface", "sharded-safetensors"]


def test_a_key_for_a_format_without_entries_is_refused(path: Path) -> None:
    with pytest.raises(LrzipError, match="nowhere"):
        open_checkpoint(path, key="nowhere")


class WithExtras(Net):
    """`Net` with a place for the other tensors of the checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(seeded(Net).state_dict())
        self.extra = nn.Module()
        self.extra.low = nn.Linear(20, 32, bias=False, dtype=torch.bfloat16)
        self.extra.register_buffer("eight", torch.zeros(32, 20, dtype=torch.int8))
        self.extra.register_buffer("scalar", torch.tensor(0.0))
        self.extra.register_buffer("none", torch.empty(0, 4))
