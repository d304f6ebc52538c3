import argparse
from pathlib import Path

import pytest
import torch

from lrzip.core.errors import UntrustedFile
from lrzip.formats.torch.pickled_file import PickledFile


def test_objects_that_cannot_be_written_again_are_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"fc.weight": torch.rand(3, 3), "args": argparse.Namespace(lr=0.1)}, path)
    file = PickledFile(path, key=None)
    with pytest.raises(UntrustedFile, match=r"a.pt` holds pickled Python objects.*`output=NAME.safetensors`"):
        file.refuse_replacing("state_dict")
    file.refuse_replacing("safetensors")
