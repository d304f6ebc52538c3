import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import lrzip
from lrzip.formats.safetensors.companions import COPY, STATE
from tests.support.shell import run

GENERATOR = torch.Generator().manual_seed(0)
STATE_DICT = {f"layers.{i}.weight": torch.randn(64, 48, generator=GENERATOR) for i in range(4)}
BIG, SMALL = bytes(20_000), bytes(500)


def meta(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as another library names and casts them."""
    return {f"blocks.{i}.w": tensor.T.contiguous().half() for i, tensor in enumerate(state.values())}


def saved(content: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def raw(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(content), None)[1]


LEFT_OUT: dict[str, tuple[Callable[[Path], None], str]] = {
    "pytorch_model.bin": (saved(STATE_DICT), COPY),
    "pytorch_model-00001-of-00002.bin": (raw(SMALL), COPY),
    "pytorch_model.bin.index.json": (raw(b"{}"), COPY),
    "model.fp16.safetensors": (lambda path: save_file(meta(STATE_DICT), path), COPY),
    "model.safetensors.index.json": (raw(b"{}"), COPY),
    "consolidated.safetensors": (raw(SMALL), COPY),
    "original/consolidated.00.pth": (saved(STATE_DICT), COPY),
    "tf_model.h5": (raw(SMALL), COPY),
    "flax_model.msgpack": (raw(SMALL), COPY),
    "rust_model.ot": (raw(SMALL), COPY),
    "onnx/model.onnx": (raw(SMALL), COPY),
    "onnx/model.onnx_data": (raw(BIG), COPY),
    "openvino/openvino_model.bin": (raw(BIG), COPY),
    "openvino/openvino_model.xml": (raw(SMALL), COPY),
    "coreml/text.mlpackage/Data/weight.bin": (raw(BIG), COPY),
    "coreml/text.mlpackage/Manifest.json": (raw(b"{}"), COPY),
    "model-q4.gguf": (raw(BIG), COPY),
    "checkpoint-500/other.safetensors": (lambda path: save_file(meta(STATE_DICT), path), COPY),
    "checkpoint-500/last.ckpt": (saved({"state_dict": STATE_DICT, "epoch": 3}), COPY),
    "optimizer.pt": (saved({"state": {}, "param_groups": []}), STATE),
    "checkpoint-500/optimizer.bin": (raw(SMALL), STATE),
    "global_step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": (raw(SMALL), STATE),
    "optimizer_0/__0_0.distcp": (raw(SMALL), STATE),
}
KEPT: dict[str, Callable[[Path], None]] = {
    "tokenizer.json": raw(BIG),
    "spiece.model": raw(BIG),
    "README.md": raw(SMALL),
    "modeling_net.py": raw(SMALL),
    "training_args.bin": saved({"lr": 0.1}),
    "scheduler.pt": saved({"last_epoch": 3, "base_lrs": [0.1]}),
    "rng_state.pth": saved({"cpu": torch.zeros(5056, dtype=torch.uint8)}),
    "2_Dense/pytorch_model.bin": saved({"linear.weight": torch.ones(64, 48)}),
    "2_Dense/model.safetensors": lambda path: save_file({"linear.weight": torch.ones(48, 20)}, path),
    "1_Pooling/config.json": raw(b"{}"),
    "speech/model.safetensors": lambda path: save_file({"codec.weight": torch.ones(90, 90)}, path),
    "vad.onnx": raw(SMALL),
    ".cache/huggingface/x.metadata": raw(SMALL),
}  # fmt: skip


def folder(path: Path, config: bool) -> Path:
    written = {name: write for name, (write, _) in LEFT_OUT.items()} | KEPT
    for name, write in written.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write(path / name)
    (path / ".git").mkdir()
    (path / ".git" / "config").write_text("x")
    save_file(STATE_DICT, path / "model.safetensors", metadata={"format": "pt"})
    if config:
        (path / "config.json").write_text(json.dumps({"model_type": "net"}))
    return path


def files(path: Path) -> dict[str, int]:
    return {p.relative_to(path).as_posix(): p.stat().st_size for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("config", [False, True])
def test_copies_and_states_are_left_out_with_the_reason(config: bool, tmp_path: Path) -> None:
    report = lrzip.compress(folder(tmp_path / "net", config), tmp_path / "small", rank=4)
    assert dict(report.dropped) == {name: reason for name, (_, reason) in LEFT_OUT.items()}
    expected = {*KEPT, "model.safetensors", *(["config.json"] if config else [])}
    assert files(tmp_path / "small").keys() == expected
    listed = {item["name"]: item["reason"] for item in report.to_dict()["dropped"]}
    assert listed == dict(report.dropped)


def test_the_totals_count_the_whole_folder(tmp_path: Path) -> None:
    source = folder(tmp_path / "net", True)
    report = lrzip.compress(source, tmp_path / "small", rank=4)
    before = {name: size for name, size in files(source).items() if not name.startswith(".git/")}
    assert report.nbytes_before == sum(before.values())
    assert report.nbytes_after == sum(files(tmp_path / "small").values())
    dry = lrzip.compress(source, rank=4, dry_run=True)
    assert dry.dropped == report.dropped
    assert abs(dry.nbytes_after - report.nbytes_after) < 1000  # but for headers


def test_keep_others_keeps_all_of_them(tmp_path: Path) -> None:
    source = folder(tmp_path / "net", True)
    report = lrzip.compress(source, tmp_path / "small", rank=4, keep_others=True)
    assert not report.dropped
    assert files(tmp_path / "small").keys() == {name for name in files(source) if not name.startswith(".git/")}


def test_files_are_named_with_the_reason_on_the_command_line(tmp_path: Path) -> None:
    done = run("compress", folder(tmp_path / "net", True), "--rank", "4", "-o", tmp_path / "small")
    for name, (_, reason) in LEFT_OUT.items():
        assert name in done.stdout.decode()
        assert reason in done.stdout.decode()


@pytest.mark.parametrize("target", ["/dev/zero", "..", ".", "../secret", "model.safetensors"])
def test_links_stay_links(target: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    source = folder(tmp_path / "net", True)
    (source / "notes").symlink_to(target)
    lrzip.compress(source, tmp_path / "small", rank=4)
    assert (tmp_path / "small" / "notes").is_symlink()
    assert str((tmp_path / "small" / "notes").readlink()) == target


def test_the_index_does_not_follow_a_link(tmp_path: Path) -> None:
    source = folder(tmp_path / "net", True)
    (tmp_path / "victim.json").write_text("{}")
    (source / "config.json").rename(tmp_path / "config.json")
    (source / "config.json").symlink_to(tmp_path / "config.json")
    before = (tmp_path / "config.json").read_text()
    lrzip.compress(source, tmp_path / "small", rank=4)
    assert (tmp_path / "config.json").read_text() == before
    assert "quantization_config" in (tmp_path / "small" / "config.json").read_text()


def test_a_snapshot_of_the_hub_cache_is_copied_with_its_content(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--net" / "blobs", tmp_path / "models--net" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file(STATE_DICT, blobs / "1", metadata={"format": "pt"})
    (blobs / "2").write_text(json.dumps({"model_type": "net"}))
    (blobs / "3").write_text("vocabulary")
    for name, blob in (
        ("model.safetensors", "1"),
        ("config.json", "2"),
        ("vocab.txt", "3"),
        ("pytorch_model.bin", "1"),
    ):
        (snapshot / name).symlink_to(Path("../../blobs") / blob)
    report = lrzip.compress(snapshot, tmp_path / "small", rank=4)
    assert (tmp_path / "small" / "vocab.txt").read_text() == "vocabulary"
    assert not any(path.is_symlink() for path in (tmp_path / "small").iterdir())
    assert report.nbytes_before == sum(path.stat().st_size for path in snapshot.iterdir())
