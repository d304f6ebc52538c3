from pathlib import Path

import pytest
from torch import nn

from lrzip.core.errors import LrzipError, UsageError
from lrzip.networks.build import build, parse_arguments

SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, name="x"):
        super().__init__()
        self.fc = nn.Linear(width, 3)

class Zoo:
    @staticmethod
    def make():
        return Net(7)

ready = Net(9)
number = 5

def nothing():
    return None

def broken():
    raise ValueError("no luck\\ntoday")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").write_text(SOURCE)
    (tmp_path / "needs.py").write_text("import not_installed_at_all")
    (tmp_path / "wrong.py").write_text("def (:")
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "arguments", "width"),
    [
        ("my_nets:Net", {}, 4),
        ("my_nets:Net", {"width": 6}, 6),
        ("my_nets:Zoo.make", {}, 7),
        ("my_nets:ready", {}, 9),
    ],
)
def test_classes_functions_and_networks_are_found(spec: str, arguments: dict[str, int], width: int) -> None:
    model = build(spec, arguments)
    assert not model.training
    assert isinstance(model.fc, nn.Linear)
    assert model.fc.in_features == width


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_nets", "takes `pkg.mod:Net`"),
        ("my_nets:", "takes `pkg.mod:Net`"),
        ("no_such_module:Net", "there is no module `no_such_module`"),
        ("my_nets.sub:Net", "cannot be imported"),
        ("needs:Net", "it needs `not_installed_at_all`, which is not installed"),
        ("wrong:Net", "cannot be imported: SyntaxError"),
        ("my_nets:Nte", "has no `Nte`. Did you mean `Net`"),
        ("my_nets:number", "is int, not a class or function"),
        ("my_nets:nothing", "returned NoneType"),
        ("my_nets:broken", "could not be built: ValueError: no luck today. Pass its arguments with"),
    ],
)
def test_networks_that_cannot_be_built_are_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(LrzipError) as caught:
        build(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_are_json_or_text() -> None:
    texts = ["width=64", "name=resnet", "ratio=0.5", "flags=[1, true]", "eq=a=b"]
    expected = {"width": 64, "name": "resnet", "ratio": 0.5, "flags": [1, True], "eq": "a=b"}
    assert parse_arguments(texts) == expected
    for text in ("width", "2x=3", "=3"):
        with pytest.raises(UsageError, match="NAME=VALUE"):
            parse_arguments([text])
