"""Names and formats of outputs follow from the source and the suffix."""

from pathlib import Path

import pytest
import torch

from lrzip.core.errors import UsageError
from lrzip.formats.open import open_checkpoint
from lrzip.formats.outputs import check_program, default_output, not_carried, output_format, size_on_disk
from tests.support.checkpoints import nested, safetensors, sharded


def test_outputs_are_named_after_their_source(tmp_path: Path) -> None:
    (tmp_path / "folder.v2").mkdir()
    assert default_output(tmp_path / "a.b.pt") == tmp_path / "a.b.lrzip.pt"
    assert default_output(tmp_path / "folder.v2") == tmp_path / "folder.v2.lrzip"


@pytest.mark.parametrize(
    ("name", "default", "expected"),
    [
        ("a.safetensors", "state_dict", "safetensors"),
        ("a.PT", "safetensors", "state_dict"),
        ("a.pt", "module", "module"),
        ("a", "safetensors", "safetensors"),
        ("a.xyz", "huggingface", "huggingface"),
        ("a.onnx", "state_dict", "onnx"),
    ],
)
def test_the_suffix_selects_the_format(name: str, default: str, expected: str) -> None:
    assert output_format(Path(name), default) == expected


def test_a_program_cannot_be_made_of_weights(tmp_path: Path) -> None:
    with open_checkpoint(safetensors(tmp_path)) as source:
        with pytest.raises(UsageError, match="holds weights and no program"):
            check_program(source, "onnx", Path("a.onnx"), force_factorize=False)
        with pytest.raises(UsageError, match="chains that are not smaller"):
            check_program(source, "safetensors", Path("a.safetensors"), force_factorize=True)
        check_program(source, "state_dict", Path("a.pt"), force_factorize=False)


def test_entries_are_left_out_where_the_format_cannot_hold_them(tmp_path: Path) -> None:
    with open_checkpoint(nested(tmp_path)) as source:
        others = set(source.others)
        assert others == {"epoch", "optimizer", "best_prec1", "hyper_parameters"}
        assert not_carried("state_dict", source, optimizer=False) == {}
        assert not_carried("state_dict", source, optimizer=True) == {
            "optimizer": "its state no longer fits the parameters"
        }
        left_out = not_carried("safetensors", source, optimizer=False)
        assert left_out == dict.fromkeys(others, "safetensors holds tensors only")


def test_metadata_is_left_out_of_a_state_dict(tmp_path: Path) -> None:
    with open_checkpoint(safetensors(tmp_path)) as source:
        assert not_carried("state_dict", source, optimizer=True) == {
            "metadata note": "a state_dict has no place for it"
        }


def test_entries_that_only_trust_can_write_again_are_left_out(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 3), tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as source:
        assert len(source.others) == 1
        assert not_carried("module", source, optimizer=False).keys() == set(source.others)
    with open_checkpoint(tmp_path / "a.pt", trust=True) as source:
        assert not_carried("module", source, optimizer=False) == {}


def test_the_size_of_a_folder_is_that_of_all_its_files(tmp_path: Path) -> None:
    path = sharded(tmp_path)
    files = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    assert len(files) == 5
    assert size_on_disk(path, "sharded-safetensors") == sum(files)
    with open_checkpoint(path) as source:
        assert source.nbytes == sum(files)
