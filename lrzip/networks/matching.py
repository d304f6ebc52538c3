"""Match the names of the tensors of a file with those of a network, despite the prefixes of wrappers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lrzip.core.errors import LrzipError
from lrzip.core.layers import TensorSpec
from lrzip.core.stored import find_structures
from lrzip.networks.architecture import Architecture
from lrzip.networks.naming import Conversion

_WRAPPERS = ("module.", "_orig_mod.")
_TRAINER = "model."
# The counter of an AveragedModel, which never has a prefix.
_COUNTER = "n_averaged"


def wrapper_prefix(names: Iterable[str], *, trainer: bool) -> str:
    """Return the prefix that wrappers such as DataParallel and torch.compile add to all names, or "".

    Args:
        names: Names of tensors.
        trainer: Whether a trainer wrote the file, so that `model.` is an attribute of the trainer, not of the network.
    """
    wrappers = (*_WRAPPERS, _TRAINER) if trainer else _WRAPPERS
    rest = [name for name in names if name != _COUNTER]
    prefix = ""
    while rest:
        wrapper = next((wrapper for wrapper in wrappers if all(name.startswith(wrapper) for name in rest)), None)
        if wrapper is None:
            break
        prefix += wrapper
        rest = [name.removeprefix(wrapper) for name in rest]
    return prefix


@dataclass(frozen=True)
class Match:
    """The tensors of a file in terms of a network.

    Attributes:
        specs: Tensors that are stored as they are, by their names in the network.
        conversions: Other tensors that the network uses, without the prefix.
        ignored: Tensors that loading ignores, by their names in the file, with the reason.
        prefix: Prefix of the names in the file.
    """

    specs: Mapping[str, TensorSpec]
    conversions: Sequence[Conversion] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""

    @property
    def kept(self) -> Mapping[str, str]:
        """The tensors that belong to no layer of the network, by their names in the file, with the reason."""
        converted = {self.prefix + name: each for each in self.conversions for name in each.sources}
        reasons = {name: f"loaded as a part of `{next(iter(each.targets))}`" for name, each in converted.items()}
        return {**reasons, **self.ignored}

    def state(self, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the network, given a function that reads those of the file."""
        state = {name: read(spec.name) for name, spec in self.specs.items()}
        for each in self.conversions:
            state |= each.convert({name: read(self.prefix + name) for name in each.sources})
        return state

    def stored(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the file, given those of the network.

        Raises:
            LrzipError: Tensors of the network cannot be converted back.
        """
        self.check_reversible()
        tensors = {spec.name: state[name] for name, spec in self.specs.items()}
        for each in self.conversions:
            assert each.revert, "checked"
            reverted = each.revert({name: state[name] for name in each.targets})
            tensors |= {self.prefix + name: tensor.contiguous() for name, tensor in reverted.items()}
        return tensors

    def check_reversible(self) -> None:
        """Refuse a network some of whose tensors cannot be converted back to those of the file."""
        for each in self.conversions:
            if each.revert is None:
                raise LrzipError(
                    f"`{next(iter(each.targets))}` cannot be converted back to the tensors that it is loaded from. "
                    "Save the model with transformers first, and give that folder."
                )


def match_names(path: Path, tensors: Mapping[str, TensorSpec], architecture: Architecture) -> Mapping[str, TensorSpec]:
    """Return the tensors of a file that a network stores as they are, by their names in it, as `match` does."""
    return match(path, tensors, architecture).specs


def match(path: Path, tensors: Mapping[str, TensorSpec], architecture: Architecture) -> Match:
    """Match the tensors of a file with those of a network, without the prefixes of wrappers.

    Layers may be stored as factors. A tensor that the network shares between modules may be stored only once.

    Args:
        path: Path of the file, for messages.
        tensors: All tensors of the file by name.
        architecture: The network.

    Raises:
        LrzipError: The file does not fit the network; the message names the first difference.
    """
    prefixes = ["", *dict.fromkeys(wrapper_prefix(tensors, trainer=trainer) for trainer in (False, True))]
    prefix = max(prefixes, key=lambda prefix: sum(n.removeprefix(prefix) in architecture.shapes for n in tensors))
    counters = {_COUNTER} - architecture.shapes.keys()
    bare = {name.removeprefix(prefix): spec for name, spec in tensors.items() if name not in counters}
    found = _resolved(bare, architecture, prefix)
    _check(path, found, architecture)
    return found


def _resolved(bare: Mapping[str, TensorSpec], architecture: Architecture, prefix: str) -> Match:
    if architecture.naming is None:
        return Match(bare, prefix=prefix)
    resolution = architecture.naming.resolve({name: spec.shape for name, spec in bare.items()})
    ignored = {bare[name].name: reason for name, reason in resolution.ignored.items()}
    specs = {name: bare[stored] for stored, name in resolution.names.items()}
    return Match(specs, resolution.conversions, ignored, prefix)


def _check(path: Path, match: Match, architecture: Architecture) -> None:
    """Refuse a file that does not fit a network."""
    found: dict[str, tuple[int, ...]] = {name: spec.shape for name, spec in match.specs.items()}
    found |= {name: shape for each in match.conversions for name, shape in each.targets.items()}
    expected = _expected_shapes(match.specs, architecture)
    for name in [*expected, *found]:
        shape = found.get(name)
        is_counter = name.endswith("num_batches_tracked")  # which old files lack
        is_tied = architecture.shared.get(name) in found
        may_lack = is_counter or is_tied or architecture.may_lack(name)
        if shape == expected.get(name) or (shape is None and may_lack):
            continue
        _refuse_misplaced(path, name, match.specs, architecture)
        actual = f"has shape {shape}" if name in found else "is missing"
        wanted = f"takes {expected[name]}" if name in expected else "has no such tensor"
        raise LrzipError(f"`{path}` does not fit the model: `{name}` {actual}, the model {wanted}.")


def _refuse_misplaced(path: Path, name: str, found: Mapping[str, TensorSpec], architecture: Architecture) -> None:
    """Refuse factors in the place of a module that they cannot replace, which usually follow from a wrong kind.

    Args:
        path: Path of the file, for messages.
        name: Name of a tensor that does not fit.
        found: Tensors of the file by their names in the network.
        architecture: The network.
    """
    for stored in find_structures({name: spec.renamed(name) for name, spec in found.items()}):
        own = {stored.dense_name, stored.dense_bias_name, *(spec.name for spec in stored.weights)}
        info, module = architecture.layers.get(stored.module), architecture.classes.get(stored.module)
        if name in own and module and not (info and info.kind == stored.replaced.kind and info.groups == 1):
            raise LrzipError(
                f"`{path}` does not fit the model: `{stored.module}` is stored as factors of a {stored.replaced.kind} "
                f"layer, which cannot replace the {module} of the model. "
                f"Compress again with `skip={stored.module}` or with `model=PKG.MOD:NET`."
            )


def _expected_shapes(found: Mapping[str, TensorSpec], architecture: Architecture) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of a network's tensors, with the factors of layers that are stored as such."""
    expected = dict(architecture.shapes)
    named = {name: spec.renamed(name) for name, spec in found.items()}
    for stored in find_structures(named, architecture.dense_layers):
        replaced = {stored.dense_name, stored.dense_bias_name}
        if replaced & architecture.shared.keys():
            raise LrzipError(
                f"`{stored.module}` shares its weight with another layer of the model. "
                f"Compress with `skip={stored.module}`."
            )
        expected = {name: shape for name, shape in expected.items() if name not in replaced}
        expected |= {spec.name: spec.shape for spec in (*stored.weights, stored.bias) if spec}
    return expected
