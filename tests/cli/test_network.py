import sys
from pathlib import Path

import pytest
from torch import nn

from lrzip.cli.network import load_network
from lrzip.cli.verbs import EXPORT
from tests.support.commands import given


def test_a_network_is_built_with_its_arguments_and_prints_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets_of_network.py").write_text(
        "from torch import nn\ndef make(width):\n    print('chatty')\n    return nn.Linear(width, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = load_network(given(EXPORT, model="nets_of_network:make", model_arg=["width=3"]))
    assert isinstance(network, nn.Linear)
    assert network.in_features == 3
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "chatty\n")
    assert "nets_of_network" in sys.modules


def test_no_architecture_is_no_network() -> None:
    assert load_network(given(EXPORT)) is None
