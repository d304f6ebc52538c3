import os
from pathlib import Path

import pytest

from lrzip.core.errors import LrzipError, OutputExists
from lrzip.formats.files.atomic import atomic_file, atomic_files, atomic_folder, check_output


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == tmp_path
    assert path.read_text() == "half"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
def test_an_error_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(error), atomic_file(path) as temporary:
        temporary.write_text("new")
        raise error
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_leaves_the_old_folder(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "a").write_text("old")
    with pytest.raises(error), atomic_folder(path) as temporary:
        (temporary / "a").write_text("new")
        raise error
    assert list(tmp_path.iterdir()) == [path]
    assert (path / "a").read_text() == "old"


def test_a_folder_replaces_the_old_one_completely(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "a").write_text("old")
    with atomic_folder(path) as temporary:
        (temporary / "b").write_text("new")
    assert [file.name for file in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_cannot_be_written_are_refused_beforehand(tmp_path: Path) -> None:
    source, other = tmp_path / "source", tmp_path / "other"
    source.write_text("x")
    other.write_text("x")
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(OutputExists, match="is the input"):
        check_output(source, source, force=True)
    with pytest.raises(OutputExists, match="is the input"):
        check_output(tmp_path / "link", source, force=True)
    with pytest.raises(OutputExists, match="Pass `force=True`"):
        check_output(other, source, force=False)
    with pytest.raises(LrzipError, match="does not exist"):
        check_output(tmp_path / "no" / "out", source, force=True)
    with pytest.raises(LrzipError, match="neither a file nor a folder"):
        check_output(Path("/dev/null"), source, force=True)
    check_output(other, source, force=True)
    check_output(tmp_path / "new", source, force=False)


@pytest.mark.parametrize("old", [False, True])
def test_files_that_belong_together_appear_together(old: bool, tmp_path: Path) -> None:
    path, data = tmp_path / "out", tmp_path / "out.data"
    if old:
        path.write_text("old")
        data.write_text("old")
    before = {file: file.read_text() for file in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), atomic_files(path) as folder:
        (folder / "out.data").write_text("half")
        raise KeyboardInterrupt
    assert {file: file.read_text() for file in tmp_path.iterdir()} == before
    with atomic_files(path) as folder:
        (folder / "out").write_text("new")
        (folder / "out.data").write_text("new")
        assert folder.parent == tmp_path
        assert path.exists() == old
    assert {file: file.read_text() for file in tmp_path.iterdir()} == {path: "new", data: "new"}


def test_a_file_is_never_there_without_those_that_belong_to_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    (tmp_path / "out.data").mkdir()  # in the way of the file of that name
    with pytest.raises(OSError, match="directory"), atomic_files(path) as folder:
        (folder / "out").write_text("new")
        (folder / "out.data").write_text("new")
    assert not path.exists()


def observed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record the files that are synchronized and the names that are given to files, in order."""
    events: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def sync(descriptor: int) -> None:
        events.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def replacing(self: Path, target: Path) -> Path:
        events.append(("rename", target.name))
        return replace(self, target)

    def renaming(self: Path, target: Path) -> Path:
        events.append(("rename", target.name))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(Path, "rename", renaming)
    return events


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = observed(monkeypatch)
    with atomic_file(tmp_path / "out") as temporary:
        temporary.write_text("x")
    assert events == [("sync", temporary.name), ("rename", "out"), ("sync", tmp_path.name)]


def test_the_files_of_a_folder_are_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = observed(monkeypatch)
    with atomic_folder(tmp_path / "out") as temporary:
        for name in ("a", "b"):
            (temporary / name).write_text("x")
    assert set(events[:2]) == {("sync", "a"), ("sync", "b")}
    assert events[2:] == [("rename", "out"), ("sync", tmp_path.name)]


def test_files_that_belong_together_are_on_the_disk_before_the_first_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = observed(monkeypatch)
    with atomic_files(tmp_path / "out") as temporary:
        for name in ("out", "out.data"):
            (temporary / name).write_text("x")
    expected = [("sync", "out.data"), ("sync", "out"), ("rename", "out.data"), ("rename", "out")]
    assert events == [*expected, ("sync", tmp_path.name)]
