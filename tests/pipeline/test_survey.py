from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.layers import Keep, Layer
from lrzip.core.options import Selection
from lrzip.formats.live import LiveSource
from lrzip.networks.architecture import Architecture
from lrzip.pipeline.request import Request
from lrzip.pipeline.scratch import scratch_beside
from lrzip.pipeline.session import Session
from lrzip.pipeline.survey import check_device, refuse
from lrzip.ranks import Candidate, parse_rule


def items_of(model: nn.Module, rule: str, rules: dict[str, str] | None = None) -> dict[str, Candidate | Keep]:
    """Return candidates and kept tensors by name."""
    own = {pattern: None if text == "keep" else parse_rule(text) for pattern, text in (rules or {}).items()}
    found = Session(LiveSource(model), Request(parse_rule(rule), rules=own)).candidates
    return {item.layer.name if isinstance(item, Candidate) else item.name: item for item in found}


def test_spectra_are_computed_only_for_rules_that_read_them() -> None:
    torch.manual_seed(0)
    items = items_of(nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 30)), "rank:4", {"1": "energy:0.9"})
    assert items["0"].spectra == ()  # type: ignore[union-attr]
    (spectrum,) = items["1"].spectra  # type: ignore[union-attr]
    assert spectrum.shape == (30, 40)


def test_layers_without_a_rule_and_layers_that_are_not_finite_are_kept() -> None:
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 30), nn.Linear(30, 40))
    with torch.no_grad():
        model.get_parameter("1.weight")[0, 0] = torch.nan
    items = items_of(model, "rank:4", {"0": "keep"})
    assert {name: item.reason for name, item in items.items() if isinstance(item, Keep) and "." not in name} == {
        "0": "kept by `--layer`",
        "1": "contains NaN or Inf",
    }
    assert isinstance(items["2"], Candidate)


def test_subspaces_are_kept_for_the_second_pass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = LiveSource(nn.Sequential(nn.Linear(60, 50)))
    with scratch_beside(tmp_path / "out.pt") as scratch:
        session = Session(source, Request(parse_rule("energy:0.9")), scratch=scratch)
        (candidate,) = (item for item in session.candidates if isinstance(item, Candidate))
        (subspace,) = scratch.take(("svd", "0"), "cpu")
    rank = candidate.break_even_rank
    assert subspace.vectors.shape[1] >= rank
    exact = torch.linalg.svdvals(source.read("0.weight").double())
    assert candidate.spectra[0].values.double() == pytest.approx(exact, rel=1e-4)  # a Gram matrix in float32


def test_the_most_frequent_reason_is_named_if_nothing_can_be_factorized() -> None:
    source = LiveSource(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)))
    with pytest.raises(LrzipError, match="the network` has no layer that can be factorized: most are kept as a vector"):
        refuse(source, source.layers())
    with pytest.raises(LrzipError, match="it has no tensors"):
        refuse(source, [])


def test_layers_that_are_all_ambiguous_are_refused_unless_one_is_named() -> None:
    network = nn.Sequential(nn.Linear(30, 40))
    (layer,) = (item for item in LiveSource(network).layers() if isinstance(item, Layer))
    doubt = replace(layer.kept("may be an embedding; name it in `--only`"), override=layer)

    class Ambiguous(LiveSource):
        def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
            del architecture
            return [doubt]

    for selection, expected in ((Selection(), None), (Selection(only=["0"]), "0")):
        session = Session(Ambiguous(network), Request(parse_rule("rank:2"), selection))
        if expected is None:
            with pytest.raises(LrzipError, match="no layer that can be factorized: most are kept as may be an"):
                session.plan()
        else:
            assert [item.layer.name for item in session.plan().factorize] == [expected]


def test_a_selection_without_layers_is_no_error_of_the_checkpoint() -> None:
    session = Session(
        LiveSource(nn.Sequential(nn.Linear(30, 40))), Request(parse_rule("rank:2"), Selection(skip=["0"]))
    )
    assert not session.plan().factorize


@pytest.mark.parametrize("device", ["meta", "cuda:99", "nonsense"])
def test_devices_that_cannot_compute_are_usage_errors(device: str) -> None:
    with pytest.raises(UsageError, match=f"The device `{device}` cannot be used: "):
        check_device(device)
    check_device("cpu")
