"""Export a checkpoint in another format, or with its factors merged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from lrzip.api.keywords import EXPORT_GROUPS, ExportOptions
from lrzip.api.merging import ambiguous_modules, factorized_layers, selected_layers
from lrzip.core.declarations import Options, documented
from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.layers import TensorSpec
from lrzip.core.layout import Entry
from lrzip.core.merge import merge
from lrzip.core.options import Inputs, Key, Machine, Network, Opening
from lrzip.core.output_options import MergedLayers, Overwriting
from lrzip.core.plan import SCHEMA
from lrzip.core.report import Difference, EntryChoice
from lrzip.core.stored import Stored
from lrzip.core.version import __version__
from lrzip.formats.files.atomic import check_output
from lrzip.formats.files.claims import checked_before
from lrzip.formats.files.unchanged import Snapshot
from lrzip.formats.load import load_into
from lrzip.formats.open import open_checkpoint
from lrzip.formats.outputs import not_carried, target_format
from lrzip.formats.protocols import Checkpoint, Nested, Runnable, entry_of
from lrzip.formats.torch.module import ModuleFile
from lrzip.formats.torch.program import ProgramFile
from lrzip.formats.traced import save_onnx, save_pt2
from lrzip.formats.write import create
from lrzip.networks.inputs import InputShape
from lrzip.networks.programs.trace import Traced, trace, trace_program

TARGETS = ("safetensors", "state-dict", "dense", "onnx", "pt2")
PROGRAMS = ("onnx", "pt2")


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        source: File or folder that was read.
        output: File or folder that was written.
        target: `safetensors`, `state-dict`, `dense`, `onnx` or `pt2`.
        tensors: Number of tensors in the output.
        chains: Names of the layers whose factors were merged.
        dropped: Entries of the source that were left out, with reasons.
        version: Version of lrzip.
        differences: Differences between the outputs of the program and the network; None if not compared.
        entry: Entry of a nested source that holds the weights; not known for programs.
        doubtful: Modules that may be factorized layers, of a kind that only the architecture can confirm.
        not_compared: Reason why some or all outputs of the program were not compared.
        fixed: Dimensions of a program that were requested as dynamic, but are constants in the network.
    """

    source: Path
    output: Path
    target: str
    tensors: int
    chains: Sequence[str]
    dropped: Sequence[tuple[str, str]]
    version: str
    differences: Sequence[Difference] | None = None
    fixed: Sequence[str] = ()
    doubtful: Sequence[str] = ()
    not_compared: str | None = None
    entry: EntryChoice = field(default_factory=EntryChoice)

    @property
    def is_program(self) -> bool:
        """Whether the output is a program, whose outputs are compared."""
        return self.target in PROGRAMS

    def to_dict(self) -> dict[str, Any]:
        """Return the export as a JSON document."""
        return {
            "schema": SCHEMA,
            "lrzip": self.version,
            "input": str(self.source),
            "output": str(self.output),
            "entry": self.entry.to_dict(),
            "to": self.target,
            "tensors": self.tensors,
            "multiplied": list(self.chains),
            "dropped": [{"name": name, "reason": reason} for name, reason in self.dropped],
            "differences": None if self.differences is None else [item.to_dict() for item in self.differences],
            "not_compared": self.not_compared,
            "fixed": list(self.fixed),
            "doubtful": list(self.doubtful),
        }


@documented(ExportOptions, *EXPORT_GROUPS)
def export(path: str | Path, to: str, output: str | Path | None = None, **options: Unpack[ExportOptions]) -> Export:
    """Write a checkpoint in another format.

    `safetensors` and `state-dict` copy every tensor under its name. `dense` merges the factors that `compress` wrote,
    in float32 (float64 for float64) and rounded to their dtype, under the names of the original layers, in the
    source's own format or the one that the output's suffix names.

    `onnx` and `pt2` load the checkpoint into its network and export the program, in which factorized layers are
    operations of their own with small weights. The batch is dynamic. Before the program is written, its outputs are
    compared with those of the network (for `onnx`, if onnxruntime is installed). `model` is changed in place.

    Args:
        path: File written by torch.save, torch.export, safetensors or ONNX, or a sharded or transformers folder.
        to: `safetensors`, `state-dict`, `dense`, `onnx` or `pt2`.
        output: File or folder to write; by default beside the source.
        **options: Keywords as declared in `lrzip.core.options`.

    Raises:
        LrzipError: The export failed; nothing is written.
    """
    given = Options("export", ExportOptions, options)
    if to not in TARGETS:
        raise UsageError(f"`to` must be one of {', '.join(TARGETS)}, got {to}.")
    model, input_shapes, opening = given[Network].model, given[Inputs].input_shapes, given[Opening]
    source = Path(path)
    destination = Path(output) if output is not None else default_output(source, to)
    check_output(destination, source, force=given[Overwriting].force)
    if to != "dense":
        _refuse_merging(given, to)
    if to in PROGRAMS:
        return _export_program(source, to, destination, model, input_shapes, key=opening.key, trust=opening.trust)
    if input_shapes:
        raise UsageError(f"`input_shapes` is for programs; `to={to}` runs no network.")
    with open_checkpoint(source, key=opening.key, trust=opening.trust) as checkpoint:
        made = _merge(checkpoint, destination, model, given) if to == "dense" else _copy(checkpoint, destination, to)
        return replace(made, entry=entry_of(checkpoint))


def _refuse_merging(given: Options, to: str) -> None:
    """Refuse options that select layers to merge, or the device to do it on, for other targets."""
    defaults = {**vars(MergedLayers()), "device": Machine().device}
    values = {**vars(given[MergedLayers]), "device": given[Machine].device}
    extra = next((name for name, value in values.items() if value != defaults[name]), None)
    if extra is not None:
        raise UsageError(f"`{extra}` is for merging factors, with `to=dense`; `to={to}` merges none.")


def _merge(checkpoint: Checkpoint, destination: Path, model: nn.Module | None, given: Options) -> Export:
    """Write a checkpoint with the factors of its layers merged."""
    path = checkpoint.path
    if isinstance(checkpoint, Runnable):
        raise LrzipError(f"`{path}` is a program; only factors in weights alone are merged. Keep the dense original.")
    factorized = selected_layers(factorized_layers(checkpoint, model), given[MergedLayers])
    ambiguous = ambiguous_modules(checkpoint, factorized) if model is None else ()
    if not factorized:
        settle = (
            f" `{ambiguous[0]}` may be factors; `model=PKG.MOD:NET` settles it."
            if ambiguous
            else " It is dense already."
        )
        raise LrzipError(f"`{path}` has no factorized layers to merge.{settle}")
    format_ = target_format(destination, "dense", checkpoint.format)
    lost = not_carried(format_, checkpoint, optimizer=True)
    layout, device = _layout(checkpoint.tensors(), factorized), given[Machine].device
    with create(destination, checkpoint, layout, format_=format_, drop=list(lost)) as writer:
        for stored in factorized:
            weights = [checkpoint.read(spec.name).to(device) for spec in stored.weights]
            dense = merge(stored.structure, weights, stored.replaced)
            writer.put(stored.dense_name, dense.to("cpu", getattr(torch, stored.weights[0].dtype)))
    merged, dropped = [stored.module for stored in factorized], tuple(lost.items())
    return Export(path, destination, "dense", len(layout), merged, dropped, __version__, doubtful=ambiguous)


def _copy(checkpoint: Checkpoint, destination: Path, to: str) -> Export:
    """Write the tensors of a checkpoint unchanged in another format."""
    format_ = target_format(destination, to, checkpoint.format)
    view = checkpoint.bare() if to == "state-dict" and isinstance(checkpoint, Nested) else checkpoint
    lost = not_carried(format_, view, optimizer=False)
    bared = {name: "a bare state_dict has no place for it" for name in checkpoint.others if name not in view.others}
    layout = _layout(checkpoint.tensors(), ())
    with create(destination, view, layout, format_=format_, drop=list(lost)):
        pass
    return Export(checkpoint.path, destination, to, len(layout), (), tuple((lost | bared).items()), __version__)


def _export_program(
    source: Path,
    to: str,
    destination: Path,
    model: nn.Module | None,
    input_shapes: Sequence[str],
    *,
    key: Key,
    trust: bool,
) -> Export:
    if destination.suffix.lower() not in ("", f".{to}"):
        raise UsageError(f"`to={to}` writes .{to} files, got `{destination}`.")
    before = Snapshot.of(source) if source.exists() else Snapshot()
    traced = _traced(source, to, model, [InputShape.parse(text) for text in input_shapes], key=key, trust=trust)
    with checked_before(destination, before.refuse_changes):
        found = save_onnx(traced, destination) if to == "onnx" else save_pt2(traced, destination)
    count, differences = len(traced.program.state_dict), found.differences or None
    return Export(
        source, destination, to, count, (), (), __version__, differences, traced.fixed, (), found.not_compared
    )


def _traced(
    source: Path, to: str, model: nn.Module | None, inputs: Sequence[InputShape], *, key: Key, trust: bool
) -> Traced:
    """Trace the network of a checkpoint, given or from a trusted file, or return the program in a trusted file."""
    if model is None and trust:
        with open_checkpoint(source, key=key, trust=True) as checkpoint:
            if isinstance(checkpoint, ProgramFile):
                return trace_program(checkpoint.program())
            model = checkpoint.load().eval() if isinstance(checkpoint, ModuleFile) else None
    elif model is not None:
        model = load_into(model, source, key=key, trust=trust).eval()
    if model is None or not inputs:
        raise UsageError(
            f"`to={to}` needs `model=PKG.MOD:NET` and `input_shapes=1,3,32,32`; "
            "a program or a pickled module brings its own network, with `trust=True`."
        )
    return trace(model, inputs)


def default_output(source: Path, to: str) -> Path:
    """Return `model.safetensors`, `model.state_dict.pt`, `model.dense.pt` or `model.onnx` for `model.pt`."""
    path = source if source.name else source.absolute()
    stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
    endings = {"state-dict": ".state_dict.pt", "dense": f".dense{suffix}"}
    return path.with_name(stem + endings.get(to, f".{to}"))


def _layout(tensors: Mapping[str, TensorSpec], factorized: Sequence[Stored]) -> tuple[Entry, ...]:
    """Return every tensor of the output: dense weights in place of first factors, biases under their original names."""
    first = {stored.weights[0].name: stored for stored in factorized}
    later = {spec.name for stored in factorized for spec in stored.weights[1:]}
    biases = {stored.bias.name: stored.dense_bias_name for stored in factorized if stored.bias}
    entries: list[Entry] = []
    for name, spec in tensors.items():
        if name in first:
            shape = first[name].replaced.shape
            dense = TensorSpec(first[name].dense_name, shape, spec.dtype, spec.nbytes // spec.numel * prod(shape))
            entries.append(Entry(dense, name, copied=False))
        elif name not in later:
            entries.append(Entry(spec.renamed(biases.get(name, name)), name, copied=True))
    return tuple(entries)
