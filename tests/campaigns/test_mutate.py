"""The campaign finds what it looks for, and its files depend on nothing but the seed."""

import json
import os
import resource
import signal
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from tests.campaigns import mutate, worker
from tests.campaigns import mutations as by
from tests.campaigns.mutations import Mutate
from tests.campaigns.seeds import Seed, _mutation
from tests.support.checkpoints import bare, legacy, onnx_model, safetensors

MUTATIONS = {
    "bytes": (by.of_bytes, b"some bytes"),
    "json": (by.of_json, b'{"a": [1, {"b": "c"}], "d": null}'),
    "lines": (by.of_lines, b'{"key": "a", "x": 1}\n{"key": "b", "x": 2}\n'),
}


@pytest.mark.parametrize("name", [*MUTATIONS, "bare", "legacy", "onnx", "safetensors"])
def test_mutations_are_determined_by_their_seed(name: str, tmp_path: Path) -> None:
    builders = {"bare": bare, "legacy": legacy, "onnx": onnx_model, "safetensors": safetensors}
    path = builders[name](tmp_path) if name in builders else tmp_path
    change: Mutate
    change, data = MUTATIONS[name] if name in MUTATIONS else (_mutation(name)(path.name), path.read_bytes())
    found = []
    for number in range(30):
        try:
            first = change(data, Random(number))
        except (ValueError, KeyError, TypeError, IndexError):  # nothing to change, which the campaign passes over
            continue
        if name != "onnx":  # whose maps have no order
            assert first == change(data, Random(number))
        found.append(first)
    assert len(set(found) - {data}) > 20


def _same(data: bytes, random: Random) -> bytes:
    del random
    return data


def try_one(command: tuple[str, ...], data: bytes, tmp_path: Path) -> list[str]:
    path = tmp_path / "seed.pt"
    path.write_bytes(data)
    seeds = {"one": Seed(path, lambda _: _same, [(1, command)])}
    faults: list[str] = worker.try_case(0, 0, seeds, tmp_path, tmp_path / "work")["faults"]
    return faults


def test_files_that_are_read_or_refused_are_no_faults(tmp_path: Path) -> None:
    command = ("compress", "{input}", "--rank", "2", "-q", "-o", "out.pt")
    assert try_one(command, bare(tmp_path).read_bytes(), tmp_path) == []
    (tmp_path / "other").mkdir()
    assert try_one(command, b"PK\x03\x04", tmp_path / "other") == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("x"), "exception: KeyError"),
        (MemoryError(), "memory: "),
        (RecursionError(), "exception: RecursionError"),
    ],
)
def test_uncaught_exceptions_are_faults(
    error: BaseException, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(worker, "run", fail)
    (fault,) = try_one(("analyze", "{input}"), b"", tmp_path)
    assert fault.startswith(expected)


def test_changed_inputs_and_outputs_of_refusals_are_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        returncode, stderr = 1, b"lrzip: `in.pt` is damaged.\n"

    def write(*_: Any, cwd: Path) -> Done:
        (cwd / "in.pt").write_bytes(b"changed")
        (cwd / "out.pt").write_bytes(b"x")
        return Done()

    monkeypatch.setattr(worker, "run", write)
    assert try_one(("analyze", "{input}"), b"before", tmp_path) == ["leaves out.pt", "changes in.pt"]


def attempt(number: int) -> dict[str, Any]:
    """Behave in one way for each number."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 2:
        time.sleep(60)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if number == 3:
        try:
            torch.empty(3 << 30, dtype=torch.uint8)
        except RuntimeError:
            return {"case": number, "faults": ["memory"], "limit": limit}
    return {"case": number, "faults": []}


def test_crashes_hangs_and_large_allocations_are_faults_of_their_case_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutate, "_SECONDS", 5.0)
    results = list(mutate.campaign(range(5), attempt))
    assert [result["case"] for result in results] == [0, 1, 2, 3, 4]
    faults = [fault for result in results for fault in result["faults"]]
    assert faults == ["crash SIGKILL", "hang: more than 5 s", "memory"]
    assert json.dumps(mutate._summary(results, 0, 1.0, 1.0))
