"""What functions unfold to is counted before they are unfolded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

import lrzip
from lrzip.core.errors import UnsupportedCheckpoint
from tests.support.graphs import body, model, node, run, save, value, weight


def with_functions(calls: Sequence[Sequence[int]]) -> Any:
    """Return a model whose functions call others, by number, one after the other; none at all is an Identity."""
    functions = []
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)]
    for number, called in enumerate(calls):
        nodes = [
            helper.make_node(f"F{other}", [f"v{step}"], [f"v{step + 1}"], domain="d")
            for step, other in enumerate(called)
        ] or [helper.make_node("Identity", ["v0"], ["v1"])]
        functions.append(helper.make_function("d", f"F{number}", ["v0"], [nodes[-1].output[0]], nodes, imports))
    return model(
        [node("MatMul", "x w", "a"), node("F0", "a", domain="d")],
        {"x": ["n", 12]},
        {"y": 2},
        {"w": weight(12, 12)},
        functions=functions,
        imports=[imports[1]],
    )


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([[number + 1] * 2 for number in range(40)] + [[]], "unfold to 1e[+]12 nodes, above 1e[+]06"),
        ([[number + 1] for number in range(3000)] + [[]], "functions nested 3001 deep, above 200"),
        ([[0]], "functions that call themselves, F0 → F0"),
        ([[1], [2, 3], [0], []], "functions that call themselves, F"),
    ],
)
def test_functions_that_cannot_be_unfolded_are_refused(
    calls: Sequence[Sequence[int]], message: str, tmp_path: Path
) -> None:
    path = save(with_functions(calls), tmp_path / "a.onnx")
    with pytest.raises(UnsupportedCheckpoint, match=message) as error:
        lrzip.compress(path, tmp_path / "b.onnx", rank=2)
    assert str(path) in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


def test_calls_within_branches_count(tmp_path: Path) -> None:
    built = with_functions([[number + 1] * 2 for number in range(40)] + [[]])
    branch = body([helper.make_node("F0", ["a"], ["t"], domain="d")], [], [value("t")])
    built.graph.node[1].CopyFrom(node("If", "flag", then_branch=branch, else_branch=branch))
    built.graph.input.append(value("flag", 9, []))
    with pytest.raises(UnsupportedCheckpoint, match="unfold to"):
        lrzip.analyze(save(built, tmp_path / "a.onnx"))


def test_functions_of_usual_depth_are_kept(tmp_path: Path) -> None:
    path = save(with_functions([[1, 1], [2, 2], []]), tmp_path / "a.onnx")
    report = lrzip.compress(path, tmp_path / "b.onnx", rank=2)
    assert report.differences
    assert run(tmp_path / "b.onnx", {"x": weight(2, 12)})["y"].shape == (2, 12)
