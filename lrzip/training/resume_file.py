"""Typed reading of the state of a training, which fits the network and the optimizer that it is loaded into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrzip.core.documents import Place, Reader, Record, each, mapping, number, optional, record, whole
from lrzip.core.tensors import tensor
from lrzip.formats.torch.plain import read_plain
from lrzip.training.outcomes import Epoch
from lrzip.training.weights import Weights

VERSION = 1
_KEYS = {"lrzip_training", "settings", "model", "optimizer", "scaler", "best", "step", "history", "loss", "seconds"}
_LARGEST = torch.finfo(torch.float32).max
_REMEDY = "Remove it to start anew."


@dataclass(frozen=True)
class State:
    """The state of a training as a file holds it.

    Attributes:
        model: The state_dict of the network.
        optimizer: The state of the optimizer.
        scaler: The state of the gradient scaler; empty without one.
        best: The best state_dict so far; empty without a validation set.
        step: Number of steps taken.
        history: Evaluations so far.
        losses: Losses of the steps of the current epoch.
        seconds: Wall time of earlier runs.
    """

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, float]
    best: Mapping[str, Tensor]
    step: int
    history: Sequence[Epoch]
    losses: Sequence[float]
    seconds: float


def open_state(path: Path, identity: Mapping[str, Any]) -> Record | None:
    """Return the unchecked state in a file, or None if the file does not exist.

    Args:
        path: The file.
        identity: Everything that determines the training, by name; it must equal what the file records.

    Raises:
        LrzipError: The file is damaged, is not a training state, or belongs to another training.
    """
    if not path.exists():
        return None
    place = Place(f"`{path}`", _REMEDY)
    if path.is_dir():
        raise place.fault("is a folder, not a file that `resume` can write")
    content = read_plain(path, place)
    known = isinstance(content, dict) and content.keys() == _KEYS and type(content["lrzip_training"]) is int
    if not known or content["lrzip_training"] != VERSION:
        raise Place(place.file, "Choose another file with `resume=FILE`.").fault(
            "is not the state of a training by this version of lrzip"
        )
    found = record(content, place)
    settings = found.read("settings", mapping(_constant))
    for name in dict.fromkeys([*identity, *settings]):
        then, now = settings.get(name), identity.get(name)
        if then != now:
            raise place.fault(f"belongs to a training with {name} {then}, and now it is {now}")
    return found


def check_state(found: Record, weights: Weights, metrics: Sequence[str], scaler: Mapping[str, Any]) -> State:
    """Return the state in a file after checking that it fits a training.

    Args:
        found: The unchecked state.
        weights: The network and the optimizer that the state is for.
        metrics: Names of the metrics of each evaluation.
        scaler: State of a new gradient scaler; empty without one.

    Raises:
        LrzipError: A field is missing, of the wrong type or shape, or not finite.
    """
    history = found.read("history", each(lambda value, place: _epoch(record(value, place), metrics)))
    best = found.read("best", lambda value, place: _weights(value, place, weights, may_be_empty=True))
    if any(epoch.scores for epoch in history) and not best:
        raise found.place.at("best").fault("is empty, though networks were evaluated")
    return State(
        model=found.read("model", lambda value, place: _weights(value, place, weights)),
        optimizer=found.read("optimizer", lambda value, place: _optimizer(record(value, place), weights)),
        scaler=found.read("scaler", lambda value, place: _scaler(record(value, place), scaler)),
        best=best,
        step=found.read("step", whole()),
        history=history,
        losses=found.read("loss", each(number())),
        seconds=found.read("seconds", number(0)),
    )


def _epoch(item: Record, metrics: Sequence[str]) -> Epoch:
    scores = item.read("scores", mapping(_score))
    if scores and scores.keys() != set(metrics):
        raise item.place.at("scores").fault(f"has other metrics than {', '.join(metrics)}")
    return Epoch(
        number=item.read("number", whole()),
        step=item.read("step", whole()),
        rate=item.read("rate", number(0)),
        loss=item.read("loss", optional(number())),
        scores=scores,
        seconds=item.read("seconds", number(0)),
    )


def _score(value: Any, place: Place) -> float:
    """Read a metric, which may be NaN or infinite."""
    if type(value) is not float:
        raise place.wrong("a number", value)
    return value


def _constant(value: Any, place: Place) -> Any:
    """Read anything but tensors."""
    if isinstance(value, Tensor):
        raise place.wrong("a setting", value)
    if isinstance(value, dict):
        return {key: _constant(item, place.at(str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_constant(item, place.at(index)) for index, item in enumerate(value))
    return value


def _weights(value: Any, place: Place, weights: Weights, *, may_be_empty: bool = False) -> Mapping[str, Tensor]:
    found = record(value, place)
    if may_be_empty and not found.fields:
        return {}
    shapes = weights.shapes()
    if found.fields.keys() != shapes.keys():
        other = next(iter(found.fields.keys() ^ shapes.keys()))
        raise place.at(str(other)).fault("is missing" if other in shapes else "is not a tensor of this network")
    trained = {name for name, _ in weights.network.named_parameters()}
    return {
        name: found.read(name, tensor(shape, largest=_LARGEST if name in trained else None))
        for name, shape in shapes.items()
    }


def _optimizer(item: Record, weights: Weights) -> Mapping[str, Any]:
    """Read the state of an optimizer; parameters that had no gradient have none."""
    groups = item.read("param_groups", each(record))
    live = weights.optimizer.param_groups
    if len(groups) != len(live):
        raise item.place.at("param_groups").fault(f"must have {len(live)} groups, got {len(groups)}")
    shapes: dict[Any, tuple[int, ...]] = {}
    for stored, group in zip(groups, live, strict=True):
        shapes |= _group(stored, group)
    states = item.read("state", record)
    for name, value in states.fields.items():
        if name not in shapes:
            raise states.place.at(str(name)).fault("is not a parameter of this network")
        fields = record(value, states.place.at(str(name)))
        for entry, is_alike in weights.entries.items():
            fields.read(entry, tensor(shapes[name] if is_alike else None, largest=_LARGEST))
            if not is_alike and prod(fields.fields[entry].shape) != 1:
                raise fields.place.at(entry).fault("must hold one number")
    return item.fields


def _group(stored: Record, live: Mapping[str, Any]) -> Mapping[Any, tuple[int, ...]]:
    """Check a group of parameters and return their shapes; its settings but for the rate are those of the optimizer."""
    parameters = stored.read("params", each(_name))
    if len(parameters) != len(live["params"]):
        raise stored.place.at("params").fault(f"must have {len(live['params'])} parameters, got {len(parameters)}")
    stored.read("lr", number(0, float(live["lr"])))
    for name in live.keys() - {"params", "lr"}:
        same: Reader[None] = _equal_to(live[name])
        stored.read(name, same)
    return dict(zip(parameters, (tuple(parameter.shape) for parameter in live["params"]), strict=True))


def _name(value: Any, place: Place) -> int | str:
    if type(value) not in (int, str):
        raise place.wrong("the name or number of a parameter", value)
    name: int | str = value
    return name


def _equal_to(expected: Any) -> Reader[None]:
    def read(value: Any, place: Place) -> None:
        if type(value) is not type(expected) or isinstance(value, Tensor) or value != expected:
            raise place.wrong(str(expected), value)

    return read


def _scaler(item: Record, live: Mapping[str, Any]) -> Mapping[str, float]:
    """Read the state of a gradient scaler; it is empty if there was none."""
    return {name: item.read(name, number(0)) for name in live} if item.fields else {}
