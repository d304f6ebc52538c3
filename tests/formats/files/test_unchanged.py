"""A source that changes while it is read gives one line and no output, in every format."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import lrzip
from lrzip.core.errors import LrzipError, UnsupportedCheckpoint
from lrzip.core.layout import Entry
from lrzip.formats.files.unchanged import Snapshot
from lrzip.formats.open import open_checkpoint
from lrzip.formats.write import create
from lrzip.pipeline.factorize import Factorizer
from tests.support.checkpoints import BUILDERS, NETWORK_BUILDERS

READ = {**BUILDERS, **{name: NETWORK_BUILDERS[name] for name in ("onnx", "program", "module")}}


def weights_of(path: Path) -> Path:
    return (
        max((file for file in path.iterdir() if file.is_file()), key=lambda f: f.stat().st_size)
        if path.is_dir()
        else path
    )


def shrink(path: Path) -> None:
    os.truncate(path, 3000)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(100))
    os.utime(path, ns=(1, 1))  # the clock of a file system may not have ticked since


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def remove(path: Path) -> None:
    path.unlink()


@contextmanager
def after_the_first_layer(change: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Change something once, after the factors of one layer were computed."""
    compute = Factorizer.factorize
    changed: list[bool] = []

    def call(self: Factorizer, *arguments: object, **keywords: object) -> object:
        result = compute(self, *arguments, **keywords)  # type: ignore[arg-type]
        if not changed:
            change()
            changed.append(True)
        return result

    monkeypatch.setattr(Factorizer, "factorize", call)
    yield
    assert changed


@pytest.mark.parametrize("change", [shrink, overwrite, replace, remove])
@pytest.mark.parametrize("kind", READ)
def test_a_source_that_changes_gives_no_output(
    kind: str, change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = READ[kind](tmp_path)
    output = tmp_path / ("out" + path.suffix if kind not in ("program", "module") else "out.pt")
    before = {file.name for file in tmp_path.iterdir()}
    with after_the_first_layer(lambda: change(weights_of(path)), monkeypatch), pytest.raises(LrzipError) as caught:
        lrzip.compress(path, output, ratio=2)
    assert "\n" not in str(caught.value)
    assert {file.name for file in tmp_path.iterdir()} <= before


def test_no_reading_of_a_file_that_became_shorter_ends_the_process(tmp_path: Path) -> None:
    """A process of its own, since a mapping that is read behind the end of its file ends it."""
    path = BUILDERS["bare"](tmp_path)
    process = os.fork()
    if not process:
        code = 1
        try:
            with open_checkpoint(path) as checkpoint:
                os.truncate(path, 100)
                for name in checkpoint.tensors():
                    try:
                        checkpoint.read(name)
                    except UnsupportedCheckpoint:
                        code = 0
        finally:
            os._exit(code)
    status = os.waitpid(process, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0, signal.Signals(os.WTERMSIG(status)).name


def test_an_unchanged_source_is_written(tmp_path: Path) -> None:
    path = BUILDERS["sharded"](tmp_path)
    snapshot = Snapshot.of(path)
    lrzip.compress(path, tmp_path / "out", ratio=2)
    snapshot.refuse_changes()
    (path / "new.txt").write_text("x")
    snapshot.refuse_changes()  # other files may appear
    (path / "config.json").write_text("{}")
    with pytest.raises(UnsupportedCheckpoint, match=r"config\.json` (was changed|became shorter) while it was read"):
        snapshot.refuse_changes()


def test_an_output_that_does_not_fit_its_disk_is_refused_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = BUILDERS["safetensors"](tmp_path)

    def read(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("lrzip.formats.safetensors.file.SafetensorsFile.read", read)
    monkeypatch.setattr("lrzip.formats.files.space.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(LrzipError, match=r"takes at least .* MB, and the disk of .* has 0\.0 MB left"):
        lrzip.compress(path, tmp_path / "out.safetensors", energy=0.9)


def test_an_output_that_does_not_fit_its_disk_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoint(BUILDERS["safetensors"](tmp_path)) as source:
        monkeypatch.setattr("lrzip.formats.files.space.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
        layout = [Entry(spec, name, copied=True) for name, spec in source.tensors().items()]
        with (
            pytest.raises(LrzipError, match="takes at least"),
            create(tmp_path / "x", source, layout, format_="safetensors"),
        ):
            raise AssertionError
