"""The network that is trained, and the one that it learns from."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.fx import GraphModule

from lrzip.core.chains import find_chains
from lrzip.core.errors import LrzipError, UsageError
from lrzip.formats import FORMATS
from lrzip.formats.load import load_into
from lrzip.formats.open import open_checkpoint
from lrzip.formats.protocols import Loadable
from lrzip.networks.architecture import Architecture
from lrzip.networks.inference import match_names


@dataclass(frozen=True)
class StudentTeacher:
    """What is trained and by what.

    Attributes:
        student: With the checkpoint in it.
        teacher: If there is one.
        names: Of the student's tensors, by those of the file.
        modules: Names of the factorized layers.
    """

    student: nn.Module
    teacher: nn.Module | None
    names: Mapping[str, str]
    modules: Sequence[str]


def load_student(
    source: Path, model: nn.Module | None, teacher: Path | None, *, key: str | None = None, trust: bool = False
) -> StudentTeacher:
    """Return the networks of a training.

    Args:
        source: Checkpoint to train.
        model: The dense architecture of both, changed in place; None where the files bring their own.
        teacher: The dense checkpoint, if there is one.
        key: Which entry of a nested source holds the weights.
        trust: Allow what would run code from the files.

    Raises:
        LrzipError: A file does not fit the network, or brings none.
    """
    return _of_files(source, teacher, key, trust) if model is None else _of_model(source, model, teacher, key, trust)


def _of_model(source: Path, model: nn.Module, teacher: Path | None, key: str | None, trust: bool) -> StudentTeacher:
    with open_checkpoint(source, key=key, trust=trust) as checkpoint:
        architecture = Architecture.of(model)
        specs = match_names(source, checkpoint.tensors(), architecture)
        chains = find_chains({name: spec.renamed(name) for name, spec in specs.items()}, architecture.kinds)
    tutor = load_into(copy.deepcopy(model), teacher, trust=trust) if teacher is not None else None
    student = load_into(model, source, key=key, trust=trust)
    # The input projections of attention are no module of their own whose outputs could be compared.
    modules = [chain.module for chain in chains if chain.kind != "attention"]
    return StudentTeacher(student, tutor, {spec.name: name for name, spec in specs.items()}, modules)


def _of_files(source: Path, teacher: Path | None, key: str | None, trust: bool) -> StudentTeacher:
    student = _brought(source, key=key, trust=trust)
    tutor = _brought(teacher, key=None, trust=trust) if teacher is not None else None
    with open_checkpoint(source, key=key, trust=trust) as checkpoint:
        tensors = checkpoint.tensors()
    own = student.state_dict()
    called = _called(student) & _called(tutor or student)
    modules = [chain.module for chain in find_chains(tensors) if chain.module in called]
    return StudentTeacher(student, tutor, {name: name for name in tensors if name in own}, modules)


def _called(network: nn.Module) -> set[str]:
    """Return the names of the modules that are called; a program calls operators, and its modules hold tensors."""
    return set() if isinstance(network, GraphModule) else {name for name, _ in network.named_modules()}


def _brought(path: Path, *, key: str | None, trust: bool) -> nn.Module:
    """Return the network that a file brings."""
    with open_checkpoint(path, key=key, trust=trust) as checkpoint:
        if isinstance(checkpoint, Loadable):
            return checkpoint.network()
    if FORMATS[checkpoint.format].is_program:
        raise LrzipError(f"`{path}` is a program, which cannot be trained. Finetune the weights, then export them.")
    raise UsageError(f"finetune needs `--model PKG.MOD:NET`: `{path}` holds weights alone.")
