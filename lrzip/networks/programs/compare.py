"""Compare the outputs of two programs of torch.export."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from lrzip.core.errors import NotCompared, typed_line
from lrzip.core.moments import Arguments
from lrzip.core.report import Comparison, Difference
from lrzip.networks.inputs import InputShape
from lrzip.networks.programs.trials import constant_outputs, trial_of


@torch.no_grad()
def compare_programs(
    before: ExportedProgram, after: ExportedProgram, samples: Sequence[Arguments], shapes: Sequence[InputShape]
) -> Comparison:
    """Run two programs on the same inputs, and compare the outputs that depend on them.

    Args:
        before: The dense program.
        after: The same program with layers replaced.
        samples: Calibration data; if empty, random inputs.
        shapes: Their shapes; if empty, the inputs that are stored in the dense program.

    Raises:
        NotCompared: No inputs are known, the dense program does not run on them, or no output depends on them.
    """
    text, inputs, others = trial_of(before, samples, shapes)
    try:
        expected = _outputs(before, inputs)
    except Exception as error:
        raise NotCompared(f"the program does not run on {text}: {typed_line(error)}.") from error
    constant = constant_outputs(expected, _other_outputs(before, others))
    reason = dependence(constant, text)
    if len(constant) == len(expected):
        raise NotCompared(reason or "the program has no outputs that are tensors.")
    found = dict(zip(expected, _outputs(after, inputs).values(), strict=True))  # names may change, the order does not
    names = [name for name in expected if name not in constant]
    return Comparison([difference_of(name, expected[name], found[name]) for name in names], text, reason)


def dependence(constant: Sequence[str], text: str) -> str | None:
    """Return the reason why some outputs are not compared, those that do not depend on the inputs, if there are any."""
    names = ", ".join(f"`{name}`" for name in constant)
    return f"{names} does not depend on {text}. Give data by `calibrate=FILE`." if constant else None


def _outputs(program: ExportedProgram, inputs: Arguments) -> dict[str, Tensor]:
    """Return the outputs of a program with a fixed seed, so that its random numbers are reproducible."""
    args, kwargs = copy.deepcopy(inputs)  # a program may change its inputs
    with torch.random.fork_rng():
        torch.manual_seed(0)
        leaves = pytree.tree_leaves(program.module()(*args, **kwargs))
    names = program.graph_signature.user_outputs
    return {str(name): leaf for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)}


def _other_outputs(program: ExportedProgram, others: Arguments) -> Mapping[str, Tensor]:
    """Return the outputs for other inputs; nothing if the program rejects them, so that it depends on them."""
    try:
        return _outputs(program, others)
    except Exception:  # operators and guards of a program raise exceptions of many classes
        return {}


def difference_of(name: str, before: Tensor, after: Tensor) -> Difference:
    """Return the difference of an output from its expected value.

    Args:
        name: Name of the output.
        before: Expected value.
        after: Value to compare. If its shape differs, the difference is infinite.

    Returns:
        The largest absolute difference, and the norm of the difference relative to that of the expected value.
    """
    if before.shape != after.shape:
        return Difference(name, torch.inf, torch.inf)
    exact = torch.complex128 if before.is_complex() else torch.float64
    change = (after.to(exact) - before.to(exact)).abs()
    scale = float(torch.linalg.vector_norm(before.to(exact)))
    size = float(torch.linalg.vector_norm(change))
    return Difference(name, float(change.max()) if change.numel() else 0.0, size / scale if scale else size)
