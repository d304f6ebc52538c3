"""Pickles are read as what they say, and nothing in them happens."""

import io
import pickle
from argparse import Namespace
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrzip.formats.files.inert import Handle, Inert, Name, outermost_class, read_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.binary() | st.floats(allow_nan=False), inner)
    ),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(0, 4))
def test_plain_values_are_those_that_pickle_loads(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol=protocol)
    found, handles = read_pickle(data)
    assert handles == []
    if protocol > 2:  # bytes were calls before, and protocol 0 and 1 write texts and booleans in their own ways
        assert found == value


@pytest.mark.parametrize("protocol", range(6))
def test_objects_are_names_arguments_and_state(protocol: int) -> None:
    value = {"args": Namespace(lr=0.1), "order": OrderedDict(a=1), "more": defaultdict(list, b=[2]), "path": Path("x")}
    found, _ = read_pickle(pickle.dumps(value, protocol=protocol))
    assert isinstance(found["args"], Inert)
    assert found["args"].state == {"lr": 0.1}
    assert found["more"].name == Name("collections", "defaultdict")
    assert found["more"].items == {"b": [2]}
    if protocol > 1:
        assert str(found["args"].name) == "argparse.Namespace"
        assert found["order"].items == {"a": 1}


def test_persistent_ids_are_recorded() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return ("storage", 7) if isinstance(item, Namespace) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump([Namespace()])
    assert read_pickle(buffer.getvalue()) == ([Handle(("storage", 7))], [Handle(("storage", 7))])


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Reduced:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (str(marker),)

    class Restored:
        def __reduce__(self) -> tuple[Any, ...]:
            return Namespace, (), {"x": 1}, iter([Reduced()]), iter([("k", Reduced())])

    for content in (Reduced(), [Restored()], {Reduced(): 1}):
        read_pickle(pickle.dumps(content, protocol=protocol))
    read_pickle(f"(S'touch {marker}'\nios\nsystem\n.".encode())
    read_pickle(f"(cos\nsystem\nS'touch {marker}'\no.".encode())
    assert not marker.exists()


def test_functions_of_this_process_are_not_changed() -> None:
    hostile = b"ccollections\nOrderedDict\n(N}S'__doc__'\nS'changed'\nstb."
    assert read_pickle(hostile)[0] == Name("collections", "OrderedDict")
    assert OrderedDict.__doc__ != "changed"


def test_the_class_of_the_outermost_object_is_known_from_its_first_bytes() -> None:
    assert outermost_class(io.BytesIO(pickle.dumps(Namespace(), protocol=2))) == "argparse.Namespace"
    for content in ({"a": Namespace()}, [Namespace()], OrderedDict(a=1), 3):
        assert outermost_class(io.BytesIO(pickle.dumps(content, protocol=2))) is None


@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read_pickle(data + b".")
    except Exception as error:
        assert not isinstance(error, RecursionError)


def test_the_cost_of_memo_and_keys_is_bounded() -> None:
    for key in (b")" + b"\x85" * 100_000, b")" + b"2\x86" * 40):  # one of depth 100 000, one of 2**40 items
        with pytest.raises(ValueError, match="nests tuples more deeply"):
            read_pickle(b"}" + key + b"K\x01s.")
    assert read_pickle(b"}" + b")" + b"\x85" * 50 + b"K\x01s.")[0] == {}
    found, _ = read_pickle(b"K\x01r\xff\xff\xff\xff.")  # memo entry 4 294 967 295
    assert found == 1
