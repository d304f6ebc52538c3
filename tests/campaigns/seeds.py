"""Valid files of every kind that lrzip reads, how each is mutated, and the commands that read it."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from tests.campaigns import mutations as by
from tests.campaigns.mutations import Mutate
from tests.support.checkpoints import BUILDERS, NETWORK_BUILDERS

_NETWORK = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 3))
"""
_NET = ("--model", "campaign_nets:Net")
_LEARN = (*_NET, "--data", "{valid}/data.npz", "--batch-size", "8")
_OUT = ("-o", "out{suffix}")
Command = tuple[str, ...]


@dataclass(frozen=True)
class Seed:
    """A valid file, and what is done with copies of it that are mutated.

    Attributes:
        path: The file, or a folder of which one file is mutated at a time.
        mutate: Mutation of the content of a file, by its name.
        commands: Command lines by how often they are run; `{input}` stands for the mutated file.
        share: How often this seed is taken.
    """

    path: Path
    mutate: Callable[[str], Mutate]
    commands: Sequence[tuple[float, Command]]
    share: float = 1.0


def build(valid: Path) -> dict[str, Seed]:
    """Write all valid files to a folder and return the seeds by name."""
    (valid / "campaign_nets.py").write_text(_NETWORK)
    sys.path.insert(0, str(valid))
    _write_network(valid)
    weights = {name: _built(valid / name, build) for name, build in {**BUILDERS, **NETWORK_BUILDERS}.items()}
    weights["beside"] = _saved(valid / "beside.pt", {"state_dict": torch.load(valid / "net.pt"), "args": Random(0)})
    torch.save(torch.nn.Linear(6, 5), valid / "old.pt", _use_new_zipfile_serialization=False)
    weights["legacy_module"] = valid / "old.pt"
    seeds = {name: Seed(path, _mutation(name), _commands(name)) for name, path in weights.items()}
    return seeds | _documents(valid)


def _built(folder: Path, build: Callable[[Path], Path]) -> Path:
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build(folder)


def _saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def _write_network(valid: Path) -> None:
    from campaign_nets import Net  # type: ignore[import-not-found]

    torch.manual_seed(0)
    torch.save(Net().state_dict(), valid / "net.pt")
    x = np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32)
    np.savez(valid / "data.npz", x=x, y=(x.sum(1) > 0).astype(np.int64))
    torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy((x.sum(1) > 0).astype(np.int64))}, valid / "data.pt")


def _mutation(name: str) -> Callable[[str], Mutate]:
    members = by.of_zip(lambda member: _by_member(member))
    kinds: dict[str, Mutate] = {"onnx": by.of_message, "safetensors": by.of_safetensors}
    kinds |= dict.fromkeys(("legacy", "legacy_module"), by.of_pickle)
    if name in ("sharded", "huggingface"):
        return lambda file: by.of_json if file.endswith(".json") else by.of_safetensors
    return lambda _: kinds.get(name, members)


def _by_member(name: str) -> Mutate:
    if name.endswith(".pkl"):
        return by.of_pickle
    if name.endswith(".json"):
        return by.of_json
    return by.of_npy if name.endswith(".npy") else by.of_bytes


def _commands(name: str) -> Sequence[tuple[float, Command]]:
    read: list[tuple[float, Command]] = [(4, ("analyze", "{input}", "--json", "-q"))]
    if name == "onnx":  # a compressed model is run in processes of its own, which start slowly
        return [*read, (0.05, ("compress", "{input}", "--rank", "2", "-q", *_OUT))]
    if name not in ("sharded", "huggingface"):
        read += [(1, ("export", "{input}", "--to", to, "-o", f"out.{to}", "-q")) for to in ("safetensors",)]
        read += [(1, ("export", "{input}", "--to", "state-dict", "-o", "out.pt", "-q"))]
    if name == "torchscript":
        return read
    suffix = () if name in ("sharded", "huggingface") else (".pt",)
    return [*read, (3, ("compress", "{input}", "--ratio", "2", "-q", "-o", "out" + "".join(suffix)))]


def _documents(valid: Path) -> dict[str, Seed]:
    """Return the seeds of files that lrzip writes for itself, and of data sets."""
    compress = ("compress", "{valid}/net.pt")
    calibrated = (*compress, "--budget", "params=60%", *_NET, "--calibrate", "{input}", "-q", *_OUT)
    finetune = ("finetune", "{valid}/small.pt", *_LEARN, "--steps", "2", "--resume", "{input}", "-q", *_OUT)
    search = (*compress, *_LEARN, "--max-drop", "60", "--strategy", "uniform", "--steps", "2", "-q", *_OUT)
    cached = ("analyze", "{valid}/net.pt", *_LEARN, "--sensitivity", "--energy", "0.8", "--cache", "{input}", "-q")
    logged = (*search, "--log", "{input}", "--resume")
    made = [
        (*compress, "--rank", "2", "-o", "small.pt", "--save-plan", "plan.json", "-q"),
        (*calibrated, "--save-statistics", "seen.safetensors"),
        finetune,
        cached,
        logged,
    ]
    inputs = ("", "data.npz", "state.pt", "known.jsonl", "tried.jsonl")
    for command, name in zip(made, inputs, strict=True):
        line = [part.format(valid=valid, input=name, suffix=f"-{name}.pt") for part in command]
        done = subprocess.run([sys.executable, "-m", "lrzip", *line], cwd=valid, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)}: {done.stderr.decode()}")
    data = (*_NET, "--data", "{input}", "-q")
    pt = by.of_zip(_by_member)
    return {
        "plan": Seed(valid / "plan.json", lambda _: by.of_json, [(1, (*compress, "--plan", "{input}", "-q", *_OUT))]),
        "statistics": Seed(valid / "seen.safetensors", lambda _: by.of_safetensors, [(1, calibrated)]),
        "state": Seed(valid / "state.pt", lambda _: by.of_torch, [(1, finetune)], 0.5),
        "cache": Seed(valid / "known.jsonl", lambda _: by.of_lines, [(1, cached)], 0.5),
        "log": Seed(
            valid / "tried.jsonl", lambda _: by.of_lines, [(1, (*search, "--log", "{input}", "--resume"))], 0.3
        ),
        "npz": Seed(valid / "data.npz", lambda _: pt, [(1, ("analyze", "{valid}/net.pt", *data))]),
        "data_pt": Seed(valid / "data.pt", lambda _: by.of_torch, [(1, ("analyze", "{valid}/net.pt", *data))]),
        "index": Seed(
            valid / "sharded" / "sharded",
            lambda file: by.of_json if file.endswith("index.json") else by.of_bytes,
            _commands("sharded"),
        ),
        "list": Seed(valid / "plan.json", lambda _: _nothing, [(1, ("analyze", "{input}", "-q"))], 0.1),
    }


def _nothing(data: bytes, random: Random) -> bytes:
    """Return a file of some other kind."""
    return random.choice((b"", b"\x00", json.dumps([1]).encode(), data, b"PK\x03\x04", b"\x80\x02", b"\x08\x07\x12"))
