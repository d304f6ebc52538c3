"""The network that is trained (student) and the one that it is distilled from (teacher)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.fx import GraphModule

from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.kinds import ATTENTION
from lrzip.core.options import Key
from lrzip.core.stored import find_structures
from lrzip.formats.load import load_into
from lrzip.formats.open import open_checkpoint
from lrzip.formats.protocols import Loadable, Runnable
from lrzip.networks.architecture import Architecture
from lrzip.networks.matching import Match, match
from lrzip.networks.state import copy_of, tensors_of


@dataclass(frozen=True)
class StudentTeacher:
    """The networks of a training.

    Attributes:
        student: The network to train, with the weights of its checkpoint.
        teacher: The network to learn from, if there is one.
        matched: The tensors of its file.
        modules: Names of the factorized layers.
    """

    student: nn.Module
    teacher: nn.Module | None
    matched: Match
    modules: Sequence[str]


def load_student(
    source: Path, model: nn.Module | None, teacher: Path | None, *, key: Key = None, trust: bool = False
) -> StudentTeacher:
    """Load the networks of a training.

    Args:
        source: Checkpoint to train.
        model: The dense architecture of both networks, changed in place; None if the files contain their networks.
        teacher: Dense checkpoint of the teacher, if there is one.
        key: Entry of a nested source that holds the weights.
        trust: Whether reading may execute code from the files.

    Raises:
        LrzipError: A file does not fit the architecture, or contains no network.
    """
    if model is None:
        return _from_files(source, teacher, key, trust)
    return _from_architecture(source, model, teacher, key, trust)


def _from_architecture(
    source: Path, model: nn.Module, teacher_path: Path | None, key: Key, trust: bool
) -> StudentTeacher:
    with open_checkpoint(source, key=key, trust=trust) as checkpoint:
        architecture = Architecture.of(model)
        matched = match(source, checkpoint.tensors(), architecture)
        matched.check_reversible()
        named = {name: spec.renamed(name) for name, spec in matched.specs.items()}
        stored = find_structures(named, architecture.dense_layers)
    teacher = load_into(copy_of(model), teacher_path, trust=trust) if teacher_path is not None else None
    student = load_into(model, source, key=key, trust=trust)
    # The input projections of attention are not a module of their own, so their outputs cannot be compared.
    modules = [item.module for item in stored if item.replaced.kind is not ATTENTION]
    return StudentTeacher(student, teacher, matched, modules)


def _from_files(source: Path, teacher_path: Path | None, key: Key, trust: bool) -> StudentTeacher:
    student = _contained_network(source, key=key, trust=trust)
    teacher = _contained_network(teacher_path, key=None, trust=trust) if teacher_path is not None else None
    with open_checkpoint(source, key=key, trust=trust) as checkpoint:
        tensors = checkpoint.tensors()
    own = tensors_of(student)
    callable_names = _callable_modules(student) & _callable_modules(teacher or student)
    modules = [item.module for item in find_structures(tensors) if item.module in callable_names]
    matched = Match({name: spec for name, spec in tensors.items() if name in own})
    return StudentTeacher(student, teacher, matched, modules)


def _callable_modules(network: nn.Module) -> set[str]:
    """Return the names of the modules that are called; a program calls operators, and its modules only hold tensors."""
    return set() if isinstance(network, GraphModule) else {name for name, _ in network.named_modules()}


def _contained_network(path: Path, *, key: Key, trust: bool) -> nn.Module:
    with open_checkpoint(path, key=key, trust=trust) as checkpoint:
        if isinstance(checkpoint, Loadable):
            return checkpoint.network()
    if isinstance(checkpoint, Runnable):
        raise LrzipError(f"`{path}` is a program, which cannot be trained. Finetune the weights, then export them.")
    raise UsageError(f"finetune needs `model=PKG.MOD:NET`: `{path}` holds weights alone.")
