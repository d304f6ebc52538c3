"""Run two ONNX models on the same inputs and compare their outputs, in a process of its own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from lrzip.core.errors import LrzipError, NotCompared
from lrzip.formats.onnx.feeds import Array, Arrays, Given, Trial, trials
from lrzip.formats.onnx.run import new_session, run_numbers

# An output that changes by less, relative to its norm, as the inputs change does not show what became of the weights.
_RESPONSE = 1e-3
# Time after which no other sizes are tried if the model ran at some.
_SECONDS = 20.0


class Outcome(NamedTuple):
    """Result of a comparison.

    Attributes:
        text: Description of the inputs.
        differences: Largest absolute difference of an element, and norm of the difference over that of the output
            before, by the name of the output.
        reasons: Why outputs were not compared.
    """

    text: str
    differences: Mapping[str, tuple[float, float]]
    reasons: Sequence[str]


def compare_models(dense: Path, small: Path, given: Given, threads: int) -> Outcome:
    """Return the differences of the outputs of two models on the same inputs.

    Args:
        dense: Path of the original model.
        small: Path of the compressed model.
        given: What is known about the inputs.
        threads: Number of threads.

    Raises:
        NotCompared: The original model does not run on such inputs, or its outputs do not depend on them.
        LrzipError: The original model runs and the compressed one does not.
    """
    search = _Search()
    search.run(dense, given, threads)
    try:
        session = new_session(small, threads)
        after = [run_numbers(session, feed) for feed in search.feeds]
    except ValueError as error:
        message = f"`{small.name}` would not run in onnxruntime, unlike the original model: {error}."
        raise LrzipError(message) from error
    if search.reason:
        raise NotCompared(search.reason)
    return _outcome(search, after, given)


@dataclass
class _Search:
    """Inputs on which a model runs and its outputs depend, these outputs, and the reason if there are none."""

    text: str = ""
    feeds: Sequence[Arrays] = ()
    outputs: Sequence[Mapping[str, Array]] = ()
    constant: Sequence[str] = ()
    reason: str | None = None
    _end: float = field(default_factory=lambda: monotonic() + _SECONDS)

    def run(self, path: Path, given: Given, threads: int) -> None:
        try:
            session = new_session(path, threads)
        except ValueError as error:
            raise NotCompared(f"the model does not run in onnxruntime: {error}.") from error
        reasons: list[str] = []
        is_short = False
        try:
            for trial in trials(session.get_inputs(), given):
                try:
                    is_done = self._take(session, trial, reasons)
                except MemoryError:
                    is_short = True
                    continue
                if is_done or (self.feeds and monotonic() > self._end):
                    return
        except NotCompared as error:
            self.reason = str(error)
            return
        if is_short and not self.feeds:
            raise MemoryError
        if not self.feeds:
            self.reason = reasons[0] if reasons else "the model declares inputs that are too large to try."

    def _take(self, session: Any, trial: Trial, reasons: list[str]) -> bool:
        """Run a model on inputs, keep the outputs if more of them depend on inputs, and return whether all do."""
        try:
            outputs = [run_numbers(session, feed) for feed in trial.feeds]
        except ValueError as error:
            reasons.append(f"the model does not run on {trial.text}: {error}.")
            return False
        if not all(np.isfinite(value).all() for found in outputs for value in found.values()):
            reasons.append(f"the model returns NaN or Inf for {trial.text}.")
            return False
        other = self._other(session, trial)
        constant = [name for name, value in outputs[0].items() if name in other and _is_same(value, other[name])]
        if not self.feeds or len(constant) < len(self.constant):
            self.text, self.feeds, self.outputs, self.constant = trial.text, trial.feeds, outputs, constant
        return not constant

    def _other(self, session: Any, trial: Trial) -> Mapping[str, Array]:
        """Return the outputs for the other inputs; nothing if the model rejects them, so that it depends on them."""
        try:
            return run_numbers(session, trial.other)
        except ValueError:
            return {}


def _is_same(before: Array, after: Array) -> bool:
    return before.shape == after.shape and change(before, after) <= _RESPONSE


def change(before: Array, after: Array) -> float:
    """Return the norm of a difference over that of the larger operand."""
    old, new = (array.astype(np.float64).ravel() for array in (before, after))
    scale = max(np.linalg.norm(old), np.linalg.norm(new))
    return float(np.linalg.norm(new - old) / scale) if scale else 0.0


def _outcome(search: _Search, after: Sequence[Mapping[str, Array]], given: Given) -> Outcome:
    """Return the differences of the outputs that depend on the inputs, and the reasons for the others."""
    differences: dict[str, tuple[float, float]] = {}
    reasons = list(_constants(search, given))
    for name in search.outputs[0]:
        if name in search.constant:
            continue
        pairs = [(old[name], new[name]) for old, new in zip(search.outputs, after, strict=True)]
        if any(old.shape != new.shape for old, new in pairs):
            reasons.append(f"the shape of the output `{name}` depends on the values of other tensors.")
        elif not all(np.isfinite(new).all() for _, new in pairs):
            reasons.append(f"the output `{name}` has NaN or Inf after compression, and none before.")
        else:
            differences[name] = _difference(pairs)
    return Outcome(search.text, differences, reasons)


def _constants(search: _Search, given: Given) -> Iterator[str]:
    if search.constant:
        names = ", ".join(f"`{name}`" for name in search.constant[:3])
        kind = "the calibration data" if given.samples else "random inputs"
        more = " and others" if len(search.constant) > 3 else ""
        yield f"{names}{more} does not depend on {kind}. {given.remedy}"


def _difference(pairs: Sequence[tuple[Array, Array]]) -> tuple[float, float]:
    old, new = (
        np.concatenate([array.astype(np.float64).ravel() for array in arrays]) for arrays in zip(*pairs, strict=True)
    )
    missed, scale = float(np.linalg.norm(new - old)), float(np.linalg.norm(old))
    return float(np.abs(new - old).max(initial=0)), missed / scale if scale else float(missed > 0)
