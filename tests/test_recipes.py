"""The recipes of `docs/architecture.md` for extending lrzip pass the contracts of what they extend."""

import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import lrzip
from lrzip.calibration import calibrator
from tests.support.decompositions import ADDED
from tests.support.networks import Net, seeded
from tests.support.pages import ROOT
from tests.support.recipes import Recipe, recipes

CONTRACTS = {
    "DECOMPOSITIONS": "tests/decompositions/test_contract.py",
    "RULES": "tests/ranks/test_contract.py",
    "FORMATS": "tests/formats/test_contract.py",
}
"""By registry, the contract tests that run over it."""
NAMES = {
    name: str(recipe.mapping)
    for recipe in recipes()
    if recipe.mapping in CONTRACTS
    for name in re.findall(r'^"([\w-]+)":', recipe.code, re.MULTILINE)
}


@pytest.fixture(scope="module")
def outcomes() -> Counter[tuple[str, str]]:
    """Return how many tests of the contracts had which outcome, by the name of the recipe."""
    options = ["-p", "tests.support.recipes", "-p", "no:cacheprovider", "-q", "-rA", "-k", " or ".join(NAMES)]
    command = [sys.executable, "-m", "pytest", *options, *CONTRACTS.values()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    found = re.findall(r"^(PASSED|FAILED|ERROR) \S*\[(.*)\]", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return Counter((name, outcome) for outcome, case in found for name in NAMES if name in case)


def test_every_registry_has_a_recipe() -> None:
    assert set(NAMES.values()) == CONTRACTS.keys()
    assert not NAMES.keys() & ADDED.keys(), "the contract would test other code under the name of a recipe"


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_holds(name: str, outcomes: Counter[tuple[str, str]]) -> None:
    assert outcomes[name, "PASSED"] >= 2
    assert outcomes[name, "FAILED"] + outcomes[name, "ERROR"] == 0


def test_the_correction_changes_what_the_calibration_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe,) = (recipe for recipe in recipes() if recipe.module.startswith("lrzip.calibration."))
    inputs = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def biases() -> dict[str, Tensor]:
        network = lrzip.factorize(seeded(Net), ratio=2, calibrate=inputs)
        return {name: value for name, value in network.state_dict().items() if name.endswith((".bias", "_mean"))}

    before = biases()
    monkeypatch.setattr(calibrator, "fit_in_sequence", scope_of(recipe)["fit_rounded"])
    after = biases()
    changed = [name for name in before if not before[name].equal(after[name])]
    assert len(changed) >= 3
    for name in changed:
        # bfloat16 keeps 8 significant bits.
        torch.testing.assert_close(after[name], before[name], rtol=2**-8, atol=0)
        assert after[name].equal(after[name].bfloat16().float())


def scope_of(recipe: Recipe) -> dict[str, Any]:
    """Return the names that the code of a recipe defines."""
    scope: dict[str, Any] = {}
    exec(compile(recipe.code, recipe.module, "exec"), scope)
    return scope
