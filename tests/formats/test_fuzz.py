"""Damaged files are read or refused with one line, whatever bytes they contain."""

import io
import json
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrzip.core.errors import LrzipError, PlanMismatch
from lrzip.core.plan_file import read_plan
from lrzip.formats.open import open_checkpoint
from tests.support.checkpoints import BUILDERS, NETWORK_BUILDERS, state
from tests.support.networks import Net, seeded


def legacy_module(folder: Path) -> Path:
    torch.save(seeded(Net), folder / "old.pt", _use_new_zipfile_serialization=False)
    return folder / "old.pt"


def beside(folder: Path) -> Path:
    """Save weights beside an object that is not loaded without trust."""
    torch.save({"state_dict": state(), "args": Namespace(lr=0.1)}, folder / "beside.pt")
    return folder / "beside.pt"


KINDS = {
    **{name: BUILDERS[name] for name in ("bare", "legacy", "nested", "safetensors")},
    **{name: NETWORK_BUILDERS[name] for name in ("module", "program", "torchscript")},
    "legacy_module": legacy_module,
    "beside": beside,
}
MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.sampled_from(["set", "cut", "insert", "header"])
    ),
    min_size=1,
    max_size=6,
)
FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    return {kind: KINDS[kind](folder).read_bytes() for kind in KINDS}


def mutate(data: bytes, mutations: list[tuple[float, int, str]]) -> bytes:
    content = bytearray(data)
    for where, value, how in mutations:
        if not content:
            break
        # Most of a file is data in which nothing can go wrong; half of the mutations go to its first or last 2 kB.
        span = len(content) if how in ("cut", "insert") or value % 2 else min(len(content), 2048)
        position = int(where * span)
        if how == "set" and value % 4 == 2:
            position = len(content) - 1 - position
        if how == "cut":
            del content[position:]
        elif how == "insert":
            content[position:position] = bytes([value]) * (value % 9)
        else:
            content[position] = value
    return bytes(content)


def use(path: Path) -> None:
    """Use a file as the verbs do: list its tensors, infer its layers, read everything."""
    try:
        with open_checkpoint(path) as checkpoint:
            checkpoint.layers()
            for name, spec in checkpoint.tensors().items():
                assert sum(len(chunk) for chunk in checkpoint.chunks(name)) == spec.nbytes
                checkpoint.read(name)
    except LrzipError as error:
        text = str(error)
        assert "\n" not in text
        assert "\x1b" not in text


@pytest.mark.parametrize("kind", KINDS)
@FUZZ
@given(mutations=MUTATIONS)
def test_mutated_files_are_read_or_refused(
    kind: str, mutations: list[tuple[float, int, str]], originals: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    path.write_bytes(mutate(originals[kind], mutations))
    use(path)


INNER = {"module": "data.pkl", "beside": "data.pkl", "torchscript": "data.pkl", "program": "weights_config.json"}


@pytest.mark.parametrize("kind", INNER)
@FUZZ
@given(mutations=MUTATIONS)
def test_archives_with_mutated_members_are_read_or_refused(
    kind: str, mutations: list[tuple[float, int, str]], originals: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(io.BytesIO(originals[kind])) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, mutate(data, mutations) if name.endswith(INNER[kind]) else data)
    use(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(
    entries=st.dictionaries(
        st.text(max_size=6),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "I64", "F4", "X"]) | JSON,
                "shape": st.lists(st.integers(-1, 1 << 40), max_size=3) | JSON,
                "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | JSON,
            }
        )
        | JSON,
        max_size=3,
    ),
    data=st.binary(max_size=64),
)
def test_invented_safetensors_headers_are_read_or_refused(
    entries: dict[str, object], data: bytes, tmp_path: Path
) -> None:
    text = json.dumps(entries).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    use(path)


@FUZZ
@given(
    document=JSON | st.fixed_dictionaries({"schema": st.just(1), "layers": st.lists(JSON, max_size=2), "kept": JSON})
)
def test_invented_plans_are_read_or_refused(document: object, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    try:
        read_plan(path)
    except PlanMismatch as error:
        assert "\n" not in str(error)
