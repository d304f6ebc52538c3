"""The recipes of `docs/architecture.md` for extending lrzip pass the contracts of what they extend."""

import re
import subprocess
import sys
from collections import Counter

import pytest

from tests.support.pages import ROOT
from tests.support.recipes import recipes

CONTRACTS = {"RULES": "tests/ranks/test_contract.py", "FORMATS": "tests/formats/test_contract.py"}
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


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_holds(name: str, outcomes: Counter[tuple[str, str]]) -> None:
    assert outcomes[name, "PASSED"] >= 2
    assert outcomes[name, "FAILED"] + outcomes[name, "ERROR"] == 0
