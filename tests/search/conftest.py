from pathlib import Path

import pytest

from tests.support.tasks import Deep, TwoConvolutions, write_trained


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_trained(tmp_path_factory.mktemp("trained"), Deep).read_bytes()


@pytest.fixture
def folder(tmp_path: Path, trained: bytes) -> Path:
    (tmp_path / "dense.pt").write_bytes(trained)
    return tmp_path


@pytest.fixture(scope="package")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained network of two convolutions, not to be written to."""
    return write_trained(tmp_path_factory.mktemp("convolutional"), TwoConvolutions).parent
