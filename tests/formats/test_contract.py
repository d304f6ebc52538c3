"""Properties of every format, over at least one tiny file of each."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lrzip
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint
from lrzip.core.factors import Factors, GroupFactors
from lrzip.core.layers import Keep, Layer
from lrzip.core.plan import Plan
from lrzip.decompositions import DECOMPOSITIONS, DEFAULT_DECOMPOSITION
from lrzip.formats import FORMATS
from lrzip.formats.open import open_checkpoint
from lrzip.formats.protocols import Checkpoint, Exported, Format, Guarded, Loadable, Nested, Observable, Runnable
from lrzip.formats.write import rewrite
from lrzip.pipeline.request import Request
from lrzip.pipeline.session import Session
from lrzip.ranks.ratio import Ratio
from tests.support.adapters import FOLDER_BUILDERS
from tests.support.checkpoints import (
    BUILDERS,
    NETWORK_BUILDERS,
    REFUSED_BUILDERS,
    NetWithExtras,
    bare,
    state,
)

READ = {**BUILDERS, **NETWORK_BUILDERS}
GENERAL = {"sharded-safetensors", "module", "state_dict"}
"""Formats that also match files of the more specific formats, which are asked before them."""
CAPABILITIES: Mapping[type, set[str]] = {
    Nested: {"bare", "legacy", "nested"},
    Guarded: {"module", "program", "torchscript", "onnx"},
    Runnable: {"program", "onnx"},
    Observable: {"program", "onnx"},
    Loadable: {"module", "program"},
    Exported: {"program"},
}
"""The builders whose checkpoints have each optional capability."""
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Case:
    """A file of one builder."""

    builder: str
    path: Path

    @property
    def trust(self) -> bool:
        return self.builder in NETWORK_BUILDERS

    def open(self) -> Checkpoint:
        return open_checkpoint(self.path, trust=self.trust)

    def named(self, stem: str) -> Path:
        """Return the path of an output of the same format."""
        return self.path.with_name(stem + ("" if self.path.is_dir() else self.path.suffix))

    @cached_property
    def format(self) -> Format:
        with self.open() as checkpoint:
            format_: Format = FORMATS[checkpoint.format]
            return format_

    @cached_property
    def refusal(self) -> str | None:
        """Return why layers of the file cannot be replaced in its own format, if they cannot."""
        with self.open() as checkpoint:
            try:
                if isinstance(checkpoint, Guarded):
                    checkpoint.refuse_replacing(checkpoint.format)
            except LrzipError as error:
                return str(error)
        return None


@pytest.fixture(params=READ)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(request.param, READ[request.param](tmp_path))


@pytest.fixture
def checkpoint(case: Case) -> Iterator[Checkpoint]:
    with case.open() as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tensor]:
    """Return the outputs of the compressed network, as a bare state_dict gives them, by decomposition."""
    folder = tmp_path_factory.mktemp("expected")
    path, found = bare(folder), {}
    for name in DECOMPOSITIONS:
        lrzip.compress(path, folder / f"{name}.pt", decomposition=name, ratio=2)
        found[name] = outputs(lrzip.load_into(NetWithExtras(), folder / f"{name}.pt"))
    return found


def outputs(network: nn.Module) -> Tensor:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    result: Tensor = network.eval()(x).detach()
    return result


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


def test_every_registered_format_has_a_builder(tmp_path: Path) -> None:
    found = set()
    for name, build in {**READ, **REFUSED_BUILDERS, **FOLDER_BUILDERS}.items():
        folder = tmp_path / name
        folder.mkdir()
        path = build(folder)
        matching = [format_ for format_ in FORMATS if FORMATS[format_].matches(path)]
        assert set(matching[1:]) <= GENERAL
        found.add(matching[0])
    assert found == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_every_registered_format_declares_what_its_files_hold(name: str) -> None:
    format_: Format = FORMATS[name]
    declared = (format_.is_program, format_.holds_entries, format_.holds_metadata, format_.stores_kinds)
    assert all(isinstance(value, bool) for value in declared)
    assert all(suffix.startswith(".") for suffix in format_.suffixes)
    assert format_.stores_kinds or not format_.is_program


@pytest.mark.parametrize("name", REFUSED_BUILDERS)
def test_files_of_other_programs_are_refused_in_one_line_and_never_written(name: str, tmp_path: Path) -> None:
    path = REFUSED_BUILDERS[name](tmp_path)
    with pytest.raises(UnsupportedCheckpoint) as caught:
        open_checkpoint(path, trust=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    (format_,) = (FORMATS[format_] for format_ in FORMATS if FORMATS[format_].matches(path))
    with open_checkpoint(bare(tmp_path)) as source, pytest.raises(UnsupportedCheckpoint, match="does not write"):
        format_.write(tmp_path / "out", source, (), drop=())


def test_a_file_is_opened_by_the_first_format_that_matches(case: Case, checkpoint: Checkpoint) -> None:
    assert checkpoint.format == next(name for name in FORMATS if FORMATS[name].matches(case.path))


@pytest.mark.parametrize("protocol", CAPABILITIES, ids=lambda protocol: protocol.__name__)
def test_checkpoints_have_the_capabilities_of_their_format(protocol: type, case: Case, checkpoint: Checkpoint) -> None:
    assert isinstance(checkpoint, protocol) == (case.builder in CAPABILITIES[protocol])


def test_a_nested_checkpoint_has_the_same_tensors_when_bare(checkpoint: Checkpoint) -> None:
    if isinstance(checkpoint, Nested):
        view = checkpoint.bare()
        assert view.tensors() == checkpoint.tensors()
        assert view.others == []
        assert view.key == ""
    else:
        assert checkpoint.key == ""


def test_a_loadable_checkpoint_gives_the_network_of_its_tensors(checkpoint: Checkpoint) -> None:
    if isinstance(checkpoint, Loadable):
        loaded = checkpoint.network().state_dict()
        assert loaded.keys() == checkpoint.tensors().keys()
        assert all(bits(tensor) == raw(checkpoint, name) for name, tensor in loaded.items())
    else:
        assert not isinstance(checkpoint, Exported)


def test_a_program_shows_the_inputs_of_its_layers(checkpoint: Checkpoint) -> None:
    if not isinstance(checkpoint, Observable):
        assert not FORMATS[checkpoint.format].is_program
        return
    layers = [item for item in checkpoint.layers() if isinstance(item, Layer)]
    shapes = {"image": (2, 3, 16, 16), "features": (2, 576)}
    if isinstance(checkpoint, Exported):
        shapes = {"x": shapes["image"]}
    seen: list[str] = []
    batch = ((), {name: torch.ones(shape) for name, shape in shapes.items()})
    checkpoint.observe(layers, [batch], lambda name, _: seen.append(name))
    assert seen == ["conv1", "conv2", "fc1", "fc2"]


def test_a_program_counts_the_products_of_its_layers(checkpoint: Checkpoint) -> None:
    if not isinstance(checkpoint, Runnable):
        assert not FORMATS[checkpoint.format].is_program
        return
    measured = checkpoint.measure([])
    assert measured.not_counted is None
    assert measured.positions.keys() == {"conv1", "conv2", "fc1", "fc2"}
    assert measured.macs
    assert measured.macs > sum(checkpoint.tensors()[f"{name}.weight"].numel for name in measured.positions)


def test_specs_and_bytes_are_those_that_were_saved(checkpoint: Checkpoint) -> None:
    assert len(checkpoint.tensors()) == len(state())
    for plain, tensor in state().items():
        name = name_of(checkpoint, plain)
        spec = checkpoint.tensors()[name]
        assert (spec.shape, f"torch.{spec.dtype}") == (tuple(tensor.shape), str(tensor.dtype))
        assert raw(checkpoint, name) == bits(tensor)
        assert bits(checkpoint.read(name)) == bits(tensor)


def test_layers_are_the_same_in_every_format(checkpoint: Checkpoint) -> None:
    items = {item.name: item for item in checkpoint.layers()}
    unused = items.pop("extra.low")
    if FORMATS[checkpoint.format].is_program:
        assert isinstance(unused, Keep)
        assert unused.reason.startswith("not used by")
    else:
        assert isinstance(unused, Layer)
    assert {name: str(item.kind) for name, item in items.items() if isinstance(item, Layer)} == {
        "conv1": "conv2d",
        "conv2": "conv2d",
        "fc1": "linear",
        "fc2": "linear",
    }


def test_an_empty_plan_keeps_every_tensor_and_every_byte_of_safetensors(case: Case) -> None:
    output = case.named("out")
    if case.refusal:
        with case.open() as source, pytest.raises(UnsupportedCheckpoint, match="does not write"):
            rewrite(output, source, Plan((), (), "", "")).__enter__()
        return
    with case.open() as source, rewrite(output, source, Plan((), (), "", "")):
        pass
    with case.open() as before, open_checkpoint(output, trust=case.trust) as after:
        assert list(before.tensors().values()) == list(after.tensors().values())
        assert {name: raw(after, name) for name in after.tensors()} == {n: raw(before, n) for n in before.tensors()}
        assert before.others == after.others
    if case.path.suffix == ".safetensors":
        assert case.path.read_bytes() == output.read_bytes()
    if case.path.is_dir():
        ours, theirs = digest(case.path), digest(output)
        assert {name: ours[name] for name in ours if name != INDEX} == {n: theirs[n] for n in theirs if n != INDEX}


def test_all_tensors_are_accounted_for_and_untouched_ones_identical(case: Case) -> None:
    before, output = digest(case.path), case.named("out")
    if case.refusal:
        with pytest.raises(LrzipError) as caught:
            lrzip.compress(case.path, output, ratio=2, trust=case.trust)
        assert str(caught.value) == case.refusal
        assert not output.exists()
        return
    with case.open() as source:
        plan = plan_of(source)
    report = lrzip.compress(case.path, output, ratio=2, trust=case.trust)
    replaced = {decision.layer.weight.name for decision in plan.factorize}
    assert len(replaced) >= 4
    with case.open() as source, open_checkpoint(output, trust=case.trust) as result:
        expected = {entry.spec.name: entry for entry in plan.layout(source.tensors())}
        assert result.tensors().keys() == expected.keys()
        for name, entry in expected.items():
            assert result.tensors()[name] == entry.spec
            assert not entry.copied or raw(result, name) == raw(source, entry.origin)
        assert {entry.origin for entry in expected.values()} == source.tensors().keys()
        assert result.metadata == source.metadata
        assert [name for name in source.others if name != "optimizer"] == list(result.others)
    assert digest(case.path) == before
    assert len(report.results) == len(replaced)


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_the_loaded_network_computes_the_product_of_the_factors(
    name: str, case: Case, expected: Mapping[str, Tensor]
) -> None:
    output, dense = case.named("out"), case.named("dense")
    if case.refusal or (case.builder == "huggingface" and name != DEFAULT_DECOMPOSITION):
        with pytest.raises(
            LrzipError, match=r"cannot be replaced|No selected layer can be replaced by `decomposition="
        ):
            lrzip.compress(case.path, output, decomposition=name, ratio=2, trust=case.trust)
        return
    report = lrzip.compress(case.path, output, decomposition=name, ratio=2, trust=case.trust)
    if case.builder == "onnx":  # whose biases keep their names, so that only onnxruntime can run it
        assert len(report.differences) == 2
        with pytest.raises(LrzipError, match="does not fit the model"):
            lrzip.load_into(NetWithExtras(), output)
        return
    factored = lrzip.load_into(NetWithExtras(), output, trust=case.trust)
    assert isinstance(factored.get_submodule("conv2"), nn.Sequential)
    torch.testing.assert_close(outputs(factored), expected[name])
    if case.format.is_program:
        with pytest.raises(LrzipError, match="is a program"):
            lrzip.export(output, "dense", dense)
        return
    lrzip.export(output, "dense", dense, model=NetWithExtras())  # which tells factors from depthwise layers
    merged = lrzip.load_into(NetWithExtras(), dense)
    assert isinstance(merged.get_submodule("conv2"), nn.Conv2d)
    # Outputs of a few layers, each a sum of some 1000 products in float32.
    torch.testing.assert_close(outputs(factored), outputs(merged), rtol=1e-4, atol=1e-5)


def test_a_crash_while_writing_leaves_nothing(case: Case, tmp_path: Path) -> None:
    listing = sorted(tmp_path.rglob("*"))
    before = digest(case.path)
    with case.open() as source:
        plan = plan_of(source)
        error: type[BaseException] = UnsupportedCheckpoint if case.refusal else KeyboardInterrupt
        with pytest.raises(error), rewrite(case.named("out"), source, plan) as rewriter:
            first = plan.factorize[0]
            weights = tuple(torch.zeros(spec.shape, dtype=torch.float32) for spec in first.outputs)
            rewriter.put(first, GroupFactors((Factors(first.structure, weights, 0.0, "none"),)))
            raise KeyboardInterrupt
    assert sorted(tmp_path.rglob("*")) == listing
    assert digest(case.path) == before


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_suffix_of_the_output_selects_its_format(suffix: str, case: Case, expected: Mapping[str, Tensor]) -> None:
    output = case.path.with_name(f"converted{suffix}")
    if case.builder in ("onnx", "torchscript"):
        with pytest.raises(LrzipError, match=r"must end in \.onnx|cannot be replaced"):
            lrzip.compress(case.path, output, ratio=2, trust=True)
        assert not output.exists()
        return
    report = lrzip.compress(case.path, output, ratio=2, trust=case.trust)
    own = suffix in case.format.suffixes
    with open_checkpoint(output, trust=case.trust) as result:
        if own:
            assert FORMATS[result.format] is case.format
        else:
            assert result.format == ("safetensors" if suffix == ".safetensors" else "state_dict")
        assert len(result.tensors()) == len(state()) + len(report.plan.factorize)
    loaded = lrzip.load_into(NetWithExtras(), output, trust=case.trust)
    torch.testing.assert_close(outputs(loaded), expected[DEFAULT_DECOMPOSITION])


def test_a_key_for_a_format_without_entries_is_refused(case: Case) -> None:
    with pytest.raises(LrzipError, match="nowhere"):
        open_checkpoint(case.path, key="nowhere", trust=case.trust)
