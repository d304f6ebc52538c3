"""Folders of transformers: `config.json` beside safetensors weights, which `from_pretrained` loads.

A factorized layer `x` is stored as `x.weight_in` (rank, in) and `x.weight` (out, rank), in the layout of nn.Linear,
with its bias in `x.bias`, and `config.json` names it under `quantization_config`. Inside lrzip its tensors are called
`x.0.weight`, `x.1.weight` and `x.1.bias`, as in all formats. The stored names are chosen for safety: transformers
without lrzip ignores an unknown `quantization_config`, and then refuses `x.weight` because of its shape. Had both
factors unknown names, it would leave the layer at random values.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lrzip.core.errors import LrzipError, UnsupportedCheckpoint
from lrzip.core.kinds import CONVOLUTIONS, LINEAR, LINEAR_TRANSPOSED, Kind, kind_of_shape
from lrzip.core.layers import Keep, Layer, by_module
from lrzip.core.layout import Entry
from lrzip.core.options import Key
from lrzip.core.stored import DenseLayer, find_structures
from lrzip.core.structure import Chain, Stage, Structure
from lrzip.formats.files.keys import refuse_key
from lrzip.formats.protocols import Checkpoint, Writer
from lrzip.formats.safetensors.companions import all_files
from lrzip.formats.safetensors.config import CONFIG, FORMAT_VERSION, METHOD, read_config, read_ranks
from lrzip.formats.safetensors.selection import has_weights
from lrzip.formats.safetensors.sharded import ShardedFolder, write_folder
from lrzip.formats.safetensors.transformers_models import check_ambiguity, known_kinds, read_directly
from lrzip.networks.architecture import Architecture
from lrzip.networks.recognition import find_layers

# Suffixes of the tensors of a factorized layer: inside lrzip, and in the folder.
_SUFFIXES = {"0.weight": "weight_in", "1.weight": "weight", "1.bias": "bias"}
# Kinds of layers that lrzip.hf has modules for.
_KINDS = (LINEAR, LINEAR_TRANSPOSED, *CONVOLUTIONS.values())


class HuggingFaceFolder(ShardedFolder):
    """An open folder, which presents factorized layers under the names used inside lrzip."""

    format = "huggingface"
    usage = "import lrzip.hf before from_pretrained"

    def __init__(self, path: Path, *, trust: bool = False) -> None:
        self.config = read_config(path)
        self.quantization = self.config.get("quantization_config") or {}
        where = f"`quantization_config` in `{path / CONFIG}`"
        method = self.quantization.get("quant_method")
        self.foreign = str(method) if self.quantization and method != METHOD else None
        ranks = read_ranks(self.quantization, where) if method == METHOD else {}
        transposed = self.quantization.get("transposed") or () if method == METHOD else ()
        super().__init__(path, trust=trust)
        with ExitStack() as stack:
            stack.enter_context(self)
            self.dense_layers = self._factorized_layers(ranks, transposed, where)
            stack.pop_all()

    def _factorized_layers(
        self, ranks: Mapping[str, int], transposed: Sequence[str], where: str
    ) -> Mapping[str, DenseLayer]:
        """Rename the factors of the layers in `ranks` to the names used inside lrzip, and return these layers.

        Raises:
            UnsupportedCheckpoint: The factors of a layer are missing or have another rank.
        """
        modules = by_module(self.tensors())
        for module, rank in ranks.items():
            under = modules.get(module, {})
            shapes = {suffix: spec.shape for suffix, spec in under.items()}
            if shapes.keys() - {"bias"} != {"weight_in", "weight"} or shapes["weight"][1:2] != (rank,):
                found = ", ".join(f"`{suffix}` {shape}" for suffix, shape in shapes.items()) or "no tensors"
                raise UnsupportedCheckpoint(
                    f"{where} gives `{module}` rank {rank}, which its tensors do not have: {found[:120]}."
                )
        names = {_key(m, stored): _key(m, inner) for m in ranks for inner, stored in _SUFFIXES.items()}
        self.rename(names)
        specs = self.tensors()
        kinds = {
            module: LINEAR_TRANSPOSED if module in transposed else kind_of_shape(specs[_key(module, "0.weight")].shape)
            for module in ranks
        }
        layers = {module: DenseLayer(kind) for module, kind in kinds.items() if kind}
        stored = {each.module for each in find_structures(specs, layers)}
        lost = next((module for module in ranks if module not in stored), None)
        if lost is not None:
            raise UnsupportedCheckpoint(f"{where} names `{lost}`, whose factors do not fit together.")
        return layers

    def layers(self, architecture: Architecture | None = None) -> Sequence[Layer | Keep]:
        """Return the layers that can be factorized, and the tensors that are kept with the reason.

        `config.json` determines which weights are stored (in, out).
        """
        tensors = self.tensors()
        chained = {_key(module, suffix) for module in self.dense_layers or () for suffix in ("0.weight", "1.weight")}
        reasons = read_directly(self.config, tensors) | dict(self.untouchable())
        reasons |= dict.fromkeys(chained, "already factorized")
        if self.foreign:
            reasons = dict.fromkeys(tensors, f"quantized already ({self.foreign})")
        kinds = known_kinds(self.config, tensors)
        found = find_layers(self.path, tensors, architecture, untouchable=reasons, kinds=kinds)
        return [_storable(item) if architecture else _storable(check_ambiguity(self.config, item)) for item in found]


class HuggingFaceWriter:
    """Writes computed tensors under the names of the folder."""

    def __init__(self, writer: Writer, names: Mapping[str, str]) -> None:
        self._writer = writer
        self._names = names

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one computed tensor."""
        self._writer.put(self._names.get(name, name), tensor)


class HuggingFace:
    """Folders with a `config.json` that names a model, whose other files are copied."""

    suffixes: Sequence[str] = ()
    usage: str | None = "To load it: `import lrzip.hf` before `from_pretrained` (pip install 'lrzip-nn[hf]')"
    is_program = False
    holds_entries = False
    holds_metadata = True
    stores_kinds = True

    def matches(self, path: Path) -> bool:
        """Return whether the folder has weights and a `config.json` that names a model, or a damaged one."""
        if not (path / CONFIG).is_file() or not has_weights(path):
            return False
        try:
            config = read_config(path)
        except UnsupportedCheckpoint:
            return True
        return "model_type" in config or "architectures" in config

    def open(self, path: Path, *, key: Key, trust: bool) -> HuggingFaceFolder:
        """Open a folder; safetensors contains no code to trust, but files of torch.save may."""
        refuse_key(path, key, "safetensors")
        return HuggingFaceFolder(path, trust=trust)

    def files(self, path: Path) -> Sequence[Path]:
        """Return all files of a folder."""
        return all_files(path)

    def obstacle(self, structure: Structure) -> str | None:
        """Return why `lrzip.hf` has no module for a structure, or None if it has."""
        if _is_low_rank_pair(structure):
            return None
        return "it has more than two factors, or a kernel in the second, which folders of transformers do not support"

    def write(
        self, destination: Path, source: Checkpoint, layout: Sequence[Entry], *, drop: Sequence[str]
    ) -> AbstractContextManager[Writer]:
        """Write a folder with the other files of the source, except those in `drop`; `config.json` is written last."""
        if not isinstance(source, HuggingFaceFolder):
            raise LrzipError(f"`{source.path}` is no folder with a `config.json`, so `{destination}` cannot be one.")
        return _write(destination, source, layout, drop)


@contextmanager
def _write(
    destination: Path, source: HuggingFaceFolder, layout: Sequence[Entry], drop: Sequence[str]
) -> Iterator[HuggingFaceWriter]:
    kinds = _factorized_kinds(source, layout)
    names = {_key(m, inner): _key(m, stored) for m in kinds for inner, stored in _SUFFIXES.items()}
    specs = {entry.spec.name: entry.spec for entry in layout}
    stored = [replace(entry, spec=entry.spec.renamed(names.get(entry.spec.name, entry.spec.name))) for entry in layout]
    ranks = {module: specs[_key(module, "1.weight")].shape[1] for module in kinds}
    config = _rewritten_config(source, ranks, [m for m, kind in kinds.items() if kind.is_stored_transposed])
    texts = {CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n"} if config != source.config else {}
    with write_folder(destination, source, stored, drop=drop, texts=texts) as writer:
        yield HuggingFaceWriter(writer, names)


def _factorized_kinds(source: HuggingFaceFolder, layout: Sequence[Entry]) -> dict[str, Kind]:
    """Return the kinds of the factorized layers of a layout, computed or copied, by module."""
    carried = {_key(module, "0.weight"): (module, layer.kind) for module, layer in (source.dense_layers or {}).items()}
    kinds: dict[str, Kind] = {}
    for entry in layout:
        before = source.tensors()[entry.origin]
        if entry.spec.name == entry.origin and entry.spec.shape != before.shape:
            raise LrzipError(
                f"`{entry.origin}` would get another size than `{CONFIG}` gives it. Write another format, or take it "
                "out of the plan."
            )
        if entry.structure is not None and not _is_low_rank_pair(entry.structure):
            name = entry.origin.removesuffix(".weight")
            raise LrzipError(
                f"`{name}` has more than two factors, or a kernel in the second, which folders of transformers do not "
                f"support. Leave out `decomposition`, or use `skip={name}`."
            )
        module, _, stage = entry.spec.name.removesuffix(".weight").rpartition(".")
        if entry.kind and stage in ("0", "1"):
            kinds[module] = entry.kind
        elif entry.copied and entry.spec.name in carried:
            name, kind = carried[entry.spec.name]
            kinds[name] = kind
    return kinds


def _is_low_rank_pair(structure: Structure) -> bool:
    """Return whether a structure is what the modules of `lrzip.hf` compute: two stages, the second one pointwise."""
    if not isinstance(structure, Chain) or len(structure.parts) != 2:
        return False
    first, second = structure.parts
    if not (isinstance(first, Stage) and isinstance(second, Stage)) or first.groups != second.groups:
        return False
    return set(second.kind.kernel(second.shape)) <= {1}


def _rewritten_config(
    source: HuggingFaceFolder, ranks: Mapping[str, int], transposed: Sequence[str]
) -> Mapping[str, Any]:
    if source.foreign or not (ranks or source.quantization):
        return source.config
    config = {name: value for name, value in source.config.items() if name != "quantization_config"}
    if not ranks:
        return config
    ours = {"quant_method": METHOD, "format_version": FORMAT_VERSION, "usage": source.usage, "ranks": dict(ranks)}
    return {**config, "quantization_config": ours | ({"transposed": list(transposed)} if transposed else {})}


def _storable(item: Layer | Keep) -> Layer | Keep:
    """Return a layer, but keep its tensor if `lrzip.hf` has no low-rank module of its kind."""
    if isinstance(item, Keep) or item.kind in _KINDS:
        return item
    return Keep(item.name, item.weight, f"{item.kind}, for which lrzip.hf has no low-rank module")


def _key(module: str, suffix: str) -> str:
    return f"{module}.{suffix}" if module else suffix


FORMAT = HuggingFace()
