from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lrzip.core.layers import TensorSpec
from lrzip.formats.files.stream import CODES, TensorStream, tensor_bytes


def write(path: Path, tensors: dict[str, Tensor], order: list[str], metadata: dict[str, str]) -> None:
    specs = [TensorSpec(k, tuple(t.shape), str(t.dtype).removeprefix("torch."), t.nbytes) for k, t in tensors.items()]
    with TensorStream(path, specs, metadata) as stream:
        for name in order:
            stream.write(name, [tensor_bytes(tensors[name])])


def test_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(3, 4), "b.ü": torch.arange(5, dtype=torch.int32), "c": torch.tensor(True)}
    write(tmp_path / "a", tensors, list(tensors), {"format": "pt"})
    assert (tmp_path / "a").read_bytes() == save(tensors, metadata={"format": "pt"})


SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.dictionaries(
        st.text(min_size=1, max_size=4), st.tuples(SHAPES, st.sampled_from(sorted(CODES))), max_size=6
    ),
    data=st.data(),
)
def test_the_library_reads_tensors_written_in_any_order(
    layout: dict[str, tuple[tuple[int, ...], str]], data: st.DataObject, tmp_path: Path
) -> None:
    layout.pop("__metadata__", None)
    tensors = {name: filled(shape, dtype) for name, (shape, dtype) in layout.items()}
    order = data.draw(st.permutations(list(tensors)))
    write(tmp_path / "a", tensors, order, {})
    with safe_open(tmp_path / "a", "pt") as file:
        assert sorted(file.keys()) == sorted(tensors)
        for name, tensor in tensors.items():
            read = file.get_tensor(name)
            assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype)
            assert bytes(tensor_bytes(read)) == bytes(tensor_bytes(tensor))


def filled(shape: tuple[int, ...], dtype: str) -> Tensor:
    wanted: torch.dtype = getattr(torch, dtype)
    size = prod(shape) * torch.empty(0, dtype=wanted).element_size()
    content = (torch.arange(size) % (2 if dtype == "bool" else 251)).to(torch.uint8)
    return content.view(wanted).reshape(shape) if size else torch.empty(shape, dtype=wanted)


def test_wide_tensors_stay_aligned_after_odd_ones(tmp_path: Path) -> None:
    tensors = {"half": torch.ones(3, dtype=torch.float16), "float": torch.ones(2), "double": torch.ones(1).double()}
    write(tmp_path / "a", tensors, list(tensors), {})
    with safe_open(tmp_path / "a", "pt") as file:
        assert list(file.offset_keys()) == ["double", "float", "half"]


def test_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 tensors were never written, the first is `b`"):
        write(tmp_path / "a", {"a": torch.ones(2), "b": torch.ones(2)}, ["a"], {})


def test_a_tensor_of_the_wrong_size_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="`a` takes 8 bytes, got 12"),
        TensorStream(tmp_path / "a", [TensorSpec("a", (2,), "float32", 8)], {}) as stream,
    ):
        stream.write("a", [memoryview(bytes(12))])
