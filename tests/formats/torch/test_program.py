"""Programs of torch.export (.pt2), read without loading them and rewritten with layers replaced."""

import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE
from torch.export import Dim, ExportedProgram

import lrzip
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint, UntrustedFile
from lrzip.core.layers import Keep, Layer
from lrzip.core.merge import merge
from lrzip.decompositions import DECOMPOSITIONS
from lrzip.formats.open import open_checkpoint
from lrzip.formats.torch.program_archive import DTYPES
from lrzip.networks.programs.rewrite import rewrite
from lrzip.pipeline.request import Request
from lrzip.pipeline.session import Session
from lrzip.ranks.fixed import FixedRank
from tests.support.networks import Net, Sound, Zoo, seeded
from tests.support.shell import error_of
from tests.support.shell import run as shell

EXACT = 1 - 1e-9


def exported(model: nn.Module, *inputs: Tensor, dynamic: bool = True) -> ExportedProgram:
    batch = Dim("batch", min=1, max=512)
    shapes = tuple({0: batch} for _ in inputs) if dynamic else None
    return torch.export.export(model, inputs, dynamic_shapes=shapes)


def saved(path: Path, program: ExportedProgram, **options: Any) -> Path:
    torch.export.save(program, path, **options)
    return path


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.warns(UserWarning, match="_flat_weights"):
        program = exported(seeded(Zoo), *Zoo.inputs())
    return saved(tmp_path_factory.mktemp("zoo") / "zoo.pt2", program, extra_files={"labels.txt": "cat\ndog é"})


def assert_close(actual: Any, expected: Any) -> None:
    """Compare sums of some 1000 products in float32, several layers deep."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def run(program: ExportedProgram, *inputs: Tensor) -> Any:
    with torch.no_grad():
        return program.module()(*inputs)


@torch.no_grad()
def run_model(model: nn.Module, *inputs: Tensor) -> Any:
    return model(*inputs)


def test_weights_are_read_without_loading_the_program(zoo: Path) -> None:
    state = torch.export.load(zoo).state_dict
    with open_checkpoint(zoo) as checkpoint:
        assert checkpoint.format == "program"
        assert checkpoint.tensors().keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(checkpoint.read(name), tensor)
            assert b"".join(checkpoint.chunks(name)) == bytes(tensor.detach().reshape(-1).view(torch.uint8).tolist())
            assert checkpoint.tensors()[name].nbytes == tensor.nbytes
        reasons = {item.tensor.name: item.reason for item in checkpoint.layers() if isinstance(item, Keep)}
    assert reasons["tied.weight"] == "shared with tokens.weight"
    assert reasons["tokens.weight"] == "shared with tied.weight"


def test_codes_of_dtypes_are_those_of_torch() -> None:
    assert {int(code): dtype for code, dtype in _SERIALIZE_TO_TORCH_DTYPE.items()} == DTYPES


def test_the_graph_knows_kinds_and_reasons(zoo: Path) -> None:
    with open_checkpoint(zoo, trust=True) as checkpoint:
        found = checkpoint.layers()
        kinds = {item.name: (str(item.kind), item.groups) for item in found if isinstance(item, Layer)}
        reasons = {item.name: item.reason for item in found if isinstance(item, Keep)}
        biases = {item.bias.name for item in found if isinstance(item, Layer) and item.bias}
        named = {item.weight.name if isinstance(item, Layer) else item.tensor.name for item in found}
        assert named | biases == checkpoint.tensors().keys()
    assert kinds == {
        "stem": ("conv2d", 1),
        "grouped": ("conv2d", 4),
        "up": ("conv_transpose2d", 1),
        "words": ("embedding", 1),
        "attention.in_proj_weight": ("linear", 1),
        "attention.out_proj": ("linear", 1),
        "mix": ("linear", 1),
        "head": ("linear", 1),
    }
    assert reasons["depthwise"].startswith("depthwise")
    assert reasons["lstm.weight_ih_l0"] == "used by `aten.lstm.input`, not as the weight of a layer"
    assert reasons["tied"] == "shared with tokens.weight"
    assert reasons["norm"] == "a vector"


def test_exact_factors_give_the_same_outputs_at_every_batch_size(zoo: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.pt2"
    report = lrzip.compress(zoo, output, energy=EXACT, trust=True)
    assert {result.decision.layer.name for result in report.results} == {
        "stem", "grouped", "up", "words", "mix", "head",
    }  # fmt: skip
    extra_files = {"labels.txt": ""}
    before, after = torch.export.load(zoo), torch.export.load(output, extra_files=extra_files)
    assert extra_files == {"labels.txt": "cat\ndog é"}
    assert after.range_constraints == before.range_constraints
    assert {"stem.0.weight", "stem.1.weight", "stem.1.bias", "words.1.weight"} <= after.state_dict.keys()
    assert not {"stem.weight", "stem.bias"} & after.state_dict.keys()
    for name, tensor in after.state_dict.items():
        assert isinstance(tensor, nn.Parameter) == ("running" not in name and "batches" not in name)
    for batch in (1, 2, 5):
        images, ids = Zoo.inputs(batch)
        expected = run(before, images, ids)
        assert_close(run(after, images, ids), expected)
    (difference,) = report.differences
    assert 0 <= difference.relative < 1e-5
    assert lrzip.analyze(output, trust=True).layers


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_every_attribute_of_a_layer_is_kept(name: str, tmp_path: Path) -> None:
    class Everything(nn.Module):
        """Layers with attributes that only one of the stages may have."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.sound = Net(), Sound()
            self.up1 = nn.ConvTranspose1d(20, 12, 5, stride=2, padding=1, output_padding=1, dilation=2)
            self.up3 = nn.ConvTranspose3d(18, 10, 2, stride=(1, 2, 1), bias=False)
            self.matrix, self.row = nn.Parameter(torch.randn(12, 9)), nn.Parameter(torch.randn(9))
            self.same = nn.Conv1d(20, 20, 4, padding="same", dilation=2, groups=2, padding_mode="reflect")

        def forward(self, x: Tensor, line: Tensor) -> dict[str, Any]:
            h = self.sound.line(line)
            volume = self.sound.volume(h.unflatten(2, (4, 6)).unflatten(1, (4, 5)))
            rows = torch.addmm(self.row, self.net(x), self.matrix)
            return {"net": rows, "lines": (self.up1(h), self.same(h)), "volume": self.up3(volume)}

    inputs = torch.randn(2, 3, 16, 16), torch.randn(2, 12, 24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Everything().eval()
    path = saved(tmp_path / "a.pt2", exported(model, *inputs))
    report = lrzip.compress(path, tmp_path / "b.pt2", decomposition=name, rank=2, trust=True, latency=True)
    assert len(report.results) == 10
    assert report.costs
    assert all(cost.latency for cost in report.costs.layers.values())
    assert [difference.output for difference in report.differences]
    # The network itself, with the chains' products for weights, must compute what the rewritten program computes.
    after = torch.export.load(tmp_path / "b.pt2")
    for decision in report.plan.factorize:
        weight = model.get_parameter(decision.layer.weight.name)
        stages = [after.state_dict[spec.name].detach() for spec in decision.outputs]
        with torch.no_grad():
            weight.copy_(merge(decision.structure, stages, decision.layer.stage))
    for batch in (1, 4):
        x = torch.randn(batch, 3, 16, 16), torch.randn(batch, 12, 24)
        assert_close(run(after, *x), run_model(model, *x))


class Crowded(nn.Module):
    """A weight beside a child that has the name of a third stage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 8, 3, 3))
        self.add_module("2", nn.Conv2d(16, 16, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.get_submodule("2")(torch.conv2d(x, self.weight))
        return out


def test_a_layer_whose_names_of_stages_are_taken_is_kept_with_the_reason(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt2", exported(Crowded().eval(), torch.randn(2, 8, 9, 9)))
    report = lrzip.compress(path, tmp_path / "b.pt2", rank=3, decomposition="tucker", trust=True)
    assert [result.decision.layer.name for result in report.results] == ["2"]
    assert "its module also holds `2." in next(keep.reason for keep in report.plan.keep)


class Odd(nn.Module):
    """Weights that factors cannot replace, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(12, 12)
        self.frozen = nn.Linear(12, 12)
        self.transposed = nn.Parameter(torch.randn(12, 12))
        self.left = nn.Parameter(torch.randn(12, 12))
        self.both = nn.Linear(12, 12)
        self.unused = nn.Linear(12, 12, bias=False)
        self.register_buffer("matrix", torch.randn(12, 12))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            x = self.frozen(x).relu()
        x = self.plain(self.plain(x) @ self.transposed)
        return self.both(x) @ self.matrix, self.left @ x.T + self.both.weight.sum()


def test_weights_that_are_not_used_by_plain_layers_are_kept_with_the_reason(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt2", exported(Odd(), torch.randn(3, 12)))
    report = lrzip.compress(path, tmp_path / "b.pt2", rank=2, trust=True)
    reasons = {keep.tensor.name: keep.reason for keep in report.plan.keep}
    found = {result.decision.layer.name: str(result.decision.layer.kind) for result in report.results}
    assert found == {"plain": "linear", "transposed": "linear_transposed"}
    assert reasons == {
        "frozen.weight": "used within `wrap_with_set_grad_enabled`, a part of the program with a graph of its own",
        "frozen.bias": "a vector",
        "left": "used by `aten.matmul.default`, not as the weight of a layer",
        "both.weight": "used by `aten.sum.default`, not as the weight of a layer",
        "both.bias": "a vector",
        "unused.weight": "not used by the program",
        "matrix": "not a parameter of the program",
    }
    before, after = torch.export.load(path), torch.export.load(tmp_path / "b.pt2")
    assert len(run(after, torch.randn(5, 12))[0]) == 5
    assert after.state_dict.keys() - before.state_dict.keys() == {
        "plain.0.weight", "plain.1.weight", "plain.1.bias", "transposed.0.weight", "transposed.1.weight",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # torch's own
def test_decomposed_programs_say_how_to_get_layers(tmp_path: Path) -> None:
    program = exported(nn.Sequential(nn.Linear(12, 12), nn.ReLU()), torch.randn(3, 12)).run_decompositions()
    path = saved(tmp_path / "a.pt2", program)
    with open_checkpoint(path, trust=True) as checkpoint:
        (reason,) = [item.reason for item in checkpoint.layers() if item.name == "0" and isinstance(item, Keep)]
    assert reason.startswith("used by `aten.")
    assert reason.endswith("; the program is decomposed, so re-export it without run_decompositions")
    with pytest.raises(LrzipError, match="no layer that can be factorized"):
        lrzip.compress(path, tmp_path / "b.pt2", rank=2, trust=True)


def test_a_program_in_memory_can_be_rewritten(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8)).bfloat16()
    x = torch.randn(3, 12).bfloat16()
    small = lrzip.factorize(model, rank=3)
    path = saved(tmp_path / "a.pt2", exported(model, x))
    with open_checkpoint(path, trust=True) as checkpoint:
        plan = Session(checkpoint, Request(FixedRank(3))).plan()
        layout = plan.layout(checkpoint.tensors())
    computed = {name: tensor for name, tensor in small.state_dict().items() if "weight" in name}
    program = rewrite(exported(model, x), layout, computed)
    assert torch.equal(run(program, x), run_model(small, x))
    torch.export.save(program, tmp_path / "b.pt2")
    assert torch.equal(run(torch.export.load(tmp_path / "b.pt2"), x), run_model(small, x))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.pt2", "b.pt2"]


def test_programs_without_inputs_or_with_randomness_are_compared_as_far_as_that_goes(tmp_path: Path) -> None:
    program = exported(nn.Sequential(nn.Linear(12, 12), nn.Dropout()).train(), torch.randn(3, 12))
    path = saved(tmp_path / "a.pt2", program)
    report = lrzip.compress(path, tmp_path / "b.pt2", rank=5, trust=True)
    (difference,) = report.differences
    # Dropout at random would change as many elements as it keeps, and so make a difference above 1.
    assert 0 < difference.relative < 1
    program._example_inputs = None
    saved(path, program)
    assert lrzip.compress(path, tmp_path / "c.pt2", rank=5, trust=True).differences == ()


def test_factors_keep_the_dtype_that_the_program_computes_in(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(
        LrzipError, match=r"`stem\.weight` is float32.* cannot be bfloat16\. Leave out `dtype=bfloat16`"
    ):
        lrzip.compress(zoo, tmp_path / "a.pt2", rank=2, dtype="bfloat16", trust=True)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_program_that_loads_and_runs(zoo: Path, tmp_path: Path) -> None:
    done = shell("compress", zoo, "--ratio", "2", "--trust", "-o", tmp_path / "small.pt2")
    assert done.returncode == 0, done.stderr
    assert run(torch.export.load(tmp_path / "small.pt2"), *Zoo.inputs(3)).shape == (3, 5, 50)
    text = error_of(shell("compress", zoo, "--ratio", "2", "-o", tmp_path / "again.pt2"), 1)
    assert "can execute code from the file" in text


def test_same_seed_same_bytes(zoo: Path, tmp_path: Path) -> None:
    for name in ("a.pt2", "b.pt2"):
        lrzip.compress(zoo, tmp_path / name, rank=2, trust=True)
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()


def test_weights_alone_need_no_trust(zoo: Path, tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors"):
        report = lrzip.compress(zoo, tmp_path / f"a{suffix}", rank=2)
        assert [name for name, _ in report.dropped] == ["the program"]
        assert report.differences == ()
        with open_checkpoint(tmp_path / f"a{suffix}") as checkpoint:
            assert "mix.0.weight" in checkpoint.tensors()


def test_a_program_is_not_loaded_without_trust(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(UntrustedFile, match=r"can execute code from the file\. Pass `trust=True`"):
        lrzip.compress(zoo, tmp_path / "a.pt2", rank=2)
    assert lrzip.compress(zoo, dry_run=True, rank=2).plan.factorize
    with pytest.raises(LrzipError, match="holds weights and no program"):
        torch.save(seeded(Net).state_dict(), tmp_path / "net.pt")
        lrzip.compress(tmp_path / "net.pt", tmp_path / "a.pt2", rank=2, trust=True)
    assert not (tmp_path / "a.pt2").exists()


def edited(path: Path, output: Path, edit: Callable[[str, bytes], bytes | None]) -> Path:
    """Write an archive again, with members changed or left out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(output, "w") as new:
        for name in old.namelist():
            data = edit(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return output


def hostile_edits(marker: Path) -> Sequence[Callable[[str, bytes], bytes | None]]:
    """Return three ways to make a folder when a program is loaded: by its inputs, a weight, and a symbolic size."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(marker),)

    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    size, code = b"Symbol('s", f"__import__('os').mkdir({str(marker)!r}) or Symbol('s".encode()

    def weight(name: str, data: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            document = json.loads(data)
            document["config"]["mix.weight"]["use_pickle"] = True
            return json.dumps(document).encode()
        return buffer.getvalue() if name.endswith("weight_20") else data

    return (
        lambda name, data: buffer.getvalue() if name.endswith("sample_inputs/model.pt") else data,
        weight,
        lambda name, data: data.replace(size, code) if name.endswith("models/model.json") else data,
    )


@pytest.mark.parametrize("way", range(3))
def test_hostile_programs_execute_nothing_without_trust(way: int, zoo: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = edited(zoo, tmp_path / "evil.pt2", hostile_edits(marker)[way])
    assert "stem" in {item.candidate.layer.name for item in lrzip.analyze(path).layers}
    lrzip.compress(path, rank=2, dry_run=True)
    with pytest.raises(UntrustedFile):
        lrzip.compress(path, tmp_path / "b.pt2", rank=2)
    if way == 1:
        with pytest.raises(UnsupportedCheckpoint, match=r"`mix\.weight` .* is pickled, and reading it would execute"):
            lrzip.export(path, "safetensors", tmp_path / "b.safetensors")
    else:
        lrzip.export(path, "safetensors", tmp_path / "b.safetensors")
    assert not marker.exists()
    with suppress(LrzipError):
        open_checkpoint(path, trust=True)
    assert marker.exists()  # so the file is as hostile as it is meant to be


def config(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    def edit(name: str, data: bytes) -> bytes:
        if not name.endswith("weights_config.json"):
            return data
        document = json.loads(data)
        change(document["config"]["mix.weight"])
        return json.dumps(document).encode()

    return edit


DAMAGED: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "no listing": (lambda name, data: None if "config" in name else data, "does not store its weights"),
    "no member": (lambda name, data: None if name.endswith("weight_20") else data, "is not a member of it"),
    "empty member": (lambda name, data: b"" if name.endswith("weight_20") else data, "its weight `mix.weight`"),
    "short member": (lambda name, data: data[:512] if name.endswith("weight_20") else data, "exceeds the stored bytes"),
    "no JSON": (lambda name, data: b"{" if name.endswith("weights_config.json") else data, "damaged or not"),
    "path": (config(lambda item: item.update(path_name="../weights/weight_1")), "is not a member of it"),
    "dtype": (config(lambda item: item["tensor_meta"].update(dtype=99)), "damaged or not"),
    "negative": (config(lambda item: item["tensor_meta"]["sizes"].__setitem__(0, {"as_int": -16})), "is damaged"),
    "huge": (
        config(lambda item: item["tensor_meta"]["sizes"].__setitem__(0, {"as_int": 1 << 60})),
        "exceeds the stored bytes",
    ),
    "expanded": (
        config(lambda item: item["tensor_meta"].update(sizes=[{"as_int": 1 << 60}] * 2, strides=[{"as_int": 0}] * 2)),
        "exceeds the stored bytes",
    ),
    "symbolic": (config(lambda item: item["tensor_meta"]["sizes"].__setitem__(0, {"as_expr": "s0"})), "damaged or not"),
    "big-endian": (lambda name, data: b"big" if name.endswith("byteorder") else data, "big-endian"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_programs_are_refused(
    edit: Callable[[str, bytes], bytes | None], message: str, zoo: Path, tmp_path: Path
) -> None:
    path = edited(zoo, tmp_path / "a.pt2", edit)
    with pytest.raises(UnsupportedCheckpoint, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_archives_of_torch_export_are_named(zoo: Path, tmp_path: Path) -> None:
    for members, message in (
        ({"version": "8.1", "serialized_exported_program.json": "{}"}, "older torch"),
        ({"a/models/model.json": "{}", "a/data/weights/model.pt": ""}, "older torch"),
        ({"a/models/encoder.json": "{}", "a/models/decoder.json": "{}"}, "the programs encoder, decoder"),
        ({"a/models/model.json": "{}", "a/data/aotinductor/model/a.so": ""}, "AOTInductor"),
    ):
        path = tmp_path / "a.pt2"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in members.items():
                archive.writestr(name, text)
        with pytest.raises(UnsupportedCheckpoint, match=message):
            open_checkpoint(path)
    path.write_bytes(zoo.read_bytes()[:-400])
    with pytest.raises(UnsupportedCheckpoint, match="damaged"):
        open_checkpoint(path)
    with pytest.raises(UnsupportedCheckpoint, match="`key=net`"):
        open_checkpoint(zoo, key="net")


def test_a_damaged_graph_is_one_line_with_trust(zoo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = edited(zoo, tmp_path / "a.pt2", lambda name, data: b"{}" if name.endswith("models/model.json") else data)
    with pytest.raises(UnsupportedCheckpoint, match="damaged") as caught:
        open_checkpoint(path, trust=True)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


class Drifting(nn.Module):
    """A network that assigns to one of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.steady = nn.Linear(12, 12)
        self.drifting = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drifting(self.steady(x))
        self.drifting.weight.detach().copy_(x.mT @ x)
        return out


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # torch's own
def test_a_weight_that_the_program_changes_is_kept(tmp_path: Path) -> None:
    program = exported(Drifting(), torch.randn(2, 12), dynamic=False).run_decompositions({})
    report = lrzip.analyze(saved(tmp_path / "a.pt2", program), trust=True)
    assert [item.candidate.layer.name for item in report.layers] == ["steady"]
    assert {keep.name: keep.reason for keep in report.keep}["drifting"].startswith("changed by the program")
