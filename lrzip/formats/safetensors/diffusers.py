"""Folders of a model of diffusers: `config.json` names its class, and factors are stored as for transformers.

diffusers without lrzip refuses the `quantization_config` of a compressed folder, instead of leaving layers at random
values.
"""

from pathlib import Path

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.core.options import Key
from lrzip.formats.files.keys import refuse_key
from lrzip.formats.safetensors.config import CONFIG, read_config
from lrzip.formats.safetensors.huggingface import HuggingFace, HuggingFaceFolder
from lrzip.formats.safetensors.selection import has_weights


class DiffusersFolder(HuggingFaceFolder):
    """An open folder of a model of diffusers."""

    format = "diffusers"
    usage = "import lrzip.hf.diffusers before from_pretrained"


class Diffusers(HuggingFace):
    """Folders with a `config.json` that names a class of diffusers, whose other files are copied."""

    usage = "To load it: `import lrzip.hf.diffusers` before `from_pretrained` (pip install 'lrzip-nn[hf]' diffusers)"

    def matches(self, path: Path) -> bool:
        """Return whether the folder has weights and a `config.json` of diffusers."""
        if not (path / CONFIG).is_file() or not has_weights(path):
            return False
        try:
            config = read_config(path)
        except UnsupportedCheckpoint:
            return False
        return "_class_name" in config and "model_type" not in config

    def open(self, path: Path, *, key: Key, trust: bool) -> DiffusersFolder:
        """Open a folder; safetensors contains no code to trust, but files of torch.save may."""
        refuse_key(path, key, "safetensors")
        return DiffusersFolder(path, trust=trust)


FORMAT = Diffusers()
