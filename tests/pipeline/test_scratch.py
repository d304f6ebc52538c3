from pathlib import Path

import pytest
import torch

from lrzip.linalg.blocks.subspace import full_subspace
from lrzip.pipeline.scratch import scratch_beside
from tests.support.matrices import slow, with_spectrum


def test_subspaces_are_returned_once_and_no_file_remains(tmp_path: Path) -> None:
    kept = full_subspace(with_spectrum((30, 20), slow(20)), 5, tolerance=1e-3)
    with scratch_beside(tmp_path / "out.pt") as scratch:
        scratch.put(("svd", "fc"), [kept, kept])
        found = scratch.take(("svd", "fc"), "cpu")
        assert len(found) == 2
        assert found[0].vectors.equal(kept.vectors)
        assert (found[1].energy, found[1].shape, found[1].method) == (kept.energy, kept.shape, kept.method)
        assert scratch.take(("svd", "fc"), "cpu") == ()
        assert scratch.take(("svd", "other"), "cpu") == ()
    assert not list(tmp_path.iterdir())


def test_no_file_remains_after_an_error(tmp_path: Path) -> None:
    subspace = full_subspace(torch.eye(3), 1, tolerance=1e-3)
    with pytest.raises(KeyboardInterrupt), scratch_beside(tmp_path / "out.pt") as scratch:
        scratch.put(("svd", "fc"), [subspace])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
