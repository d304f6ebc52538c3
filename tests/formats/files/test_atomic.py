import errno
import os
import shutil
import signal
from pathlib import Path

import pytest

from lrzip.core.errors import LrzipError, OutputExists
from lrzip.formats.files import renames
from lrzip.formats.files.atomic import atomic_file, atomic_files, atomic_folder, check_output
from tests.support.crashes import ended_at_each_step


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.is_relative_to(tmp_path)  # a rename within a file system is atomic
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
    check_output(other, source, force=True)
    check_output(tmp_path / "new", source, force=False)


@pytest.mark.parametrize("old", [False, True])
def test_files_that_belong_together_appear_together(old: bool, tmp_path: Path) -> None:
    path, data, former = tmp_path / "out", tmp_path / "out.2.data", tmp_path / "out.1.data"
    if old:
        path.write_text("old")
        former.write_text("old")
    before = {file: file.read_text() for file in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), atomic_files(path) as folder:
        (folder / "out.2.data").write_text("half")
        raise KeyboardInterrupt
    assert {file: file.read_text() for file in tmp_path.iterdir()} == before
    with atomic_files(path, lambda current: {*tmp_path.glob("out.*.data")} - {*current}) as folder:
        (folder / "out").write_text("new")
        (folder / "out.2.data").write_text("new")
        assert path.exists() == old
    assert {file: file.read_text() for file in tmp_path.iterdir()} == {path: "new", data: "new"}


def test_a_file_is_never_there_without_those_that_belong_to_it(tmp_path: Path) -> None:
    path, data = tmp_path / "out", tmp_path / "out.1.data"
    path.write_text("old")
    data.mkdir()  # in the way of the file of that name
    with pytest.raises(OutputExists, match="a file of the output, exists"), atomic_files(path) as folder:
        for name in ("out", "out.1.data", "out.2.data"):
            (folder / name).write_text("new")
    assert path.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == [path, data]


def test_a_file_and_its_name_are_on_the_disk_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, renameat2 = os.fsync, renames._renameat2

    def sync(descriptor: int) -> None:
        events.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def rename(source: Path, destination: Path, flags: int) -> None:
        events.append(("rename", destination.name))
        renameat2(source, destination, flags)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(renames, "_renameat2", rename)
    with atomic_files(tmp_path / "out") as folder:
        (folder / "out").mkdir()
        (folder / "out" / "a").write_text("x")
        (folder / "out.data").write_text("x")
    assert set(events[:3]) == {("sync", "out"), ("sync", "a"), ("sync", "out.data")}
    assert events[3:] == [("rename", "out.data"), ("rename", "out"), ("sync", tmp_path.name)]


def write_file(path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("new")


def write_folder(path: Path) -> None:
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("new")


def write_files(path: Path) -> None:
    with atomic_files(path, lambda current: {*path.parent.glob("out.*.data")} - {*current}) as folder:
        (folder / "out.2.data").write_text("new")
        (folder / "out").write_text("new out.2.data")


def read(path: Path) -> str | None:
    """Return the text of an output; one that names a further file must have it."""
    if not path.exists():
        return None
    text = (path / "a").read_text() if path.is_dir() else path.read_text()
    for name in text.split()[1:]:
        assert path.with_name(name).exists()
    return text.split()[0]


def unsupported(*_: object) -> None:
    raise OSError(errno.EINVAL, "unsupported")


WRITERS = {"file": write_file, "folder": write_folder, "files": write_files}
NUMBERS = {"killed": signal.SIGKILL, "terminated": signal.SIGTERM}


def old_output(kind: str, path: Path) -> None:
    """Write an output of the kind anew, in an empty folder."""
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    if kind == "folder":
        path.mkdir()
        (path / "a").write_text("old")
    elif kind == "files":
        path.write_text("old out.1.data")
        path.with_name("out.1.data").write_text("old")
    else:
        path.write_text("old")


@pytest.mark.parametrize(("is_old", "exchanging"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("ending", NUMBERS)
@pytest.mark.parametrize("kind", WRITERS)
def test_an_output_is_old_or_new_wherever_its_process_ends(
    kind: str, ending: str, exchanging: bool, is_old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and of no effect on other processes
    if not exchanging:
        monkeypatch.setattr(renames, "_renameat2", unsupported)
    path = tmp_path / "x" / "out"
    old_output(kind, path)
    if not is_old:
        shutil.rmtree(path.parent)
        path.parent.mkdir()

    def run() -> None:
        check_output(path, None, force=True)
        WRITERS[kind](path)

    for _ in ended_at_each_step(run, NUMBERS[ending]):
        hidden = [file.name for file in path.parent.iterdir() if file.name.startswith(".")]
        if exchanging or kind != "folder" or ending != "killed":
            assert read(path) in (("old", "new") if is_old else (None, "new"))
        assert not hidden or ending == "killed"
        check_output(path, None, force=True)  # as the next run does first
        assert read(path) in (("old", "new") if is_old else (None, "new"))
        assert not any(file.name.startswith(".") for file in path.parent.iterdir())
        WRITERS[kind](path)
        assert read(path) == "new"
        assert len(list(path.parent.iterdir())) == (2 if kind == "files" else 1)
        old_output(kind, path)
        if not is_old:
            shutil.rmtree(path.parent)
            path.parent.mkdir()
    assert read(path) == "new"


def test_what_a_dead_run_left_is_removed_and_what_a_live_one_holds_is_not(tmp_path: Path) -> None:
    foreign = [tmp_path / ".lrzip-0123", tmp_path / ".out.7.part", tmp_path / ".lrzip-0123456789abcdeX"]
    for path in (*foreign, tmp_path / ".lrzip-0123456789abcdef"):
        path.mkdir()
    (tmp_path / ".lrzip-fedcba9876543210").symlink_to(tmp_path)
    with atomic_file(tmp_path / "first") as first:
        first.write_text("1")
        write_file(tmp_path / "second")
        assert first.exists()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"first", "second", ".lrzip-fedcba9876543210", *(path.name for path in foreign)}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("exchanging", [True, False])
def test_an_output_that_appears_during_a_run_is_kept(
    kind: str, exchanging: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanging:
        monkeypatch.setattr(renames, "_renameat2", unsupported)
    path = tmp_path / "out"
    check_output(path, None, force=False)
    path.mkdir()
    (path / "a").write_text("theirs")
    with pytest.raises(OutputExists, match="written by another process in the meantime"):
        WRITERS[kind](path)
    assert read(path) == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", WRITERS)
def test_only_what_was_there_at_first_is_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x" / "out"
    old_output(kind, path)
    check_output(path, None, force=True)
    WRITERS[kind](path)
    WRITERS[kind](path)  # a run may write its own output again
    path.rename(tmp_path / "moved")
    path.write_text("theirs")
    with pytest.raises(OutputExists, match="in the meantime"):
        WRITERS[kind](path)
    assert path.read_text() == "theirs"


@pytest.mark.parametrize("kind", WRITERS)
def test_a_link_stays_and_what_it_refers_to_is_replaced(kind: str, tmp_path: Path) -> None:
    path, link = tmp_path / "x" / "out", tmp_path / "link"
    old_output(kind, path)
    link.symlink_to(path)
    with pytest.raises(OutputExists):
        check_output(link, None, force=False)
    check_output(link, None, force=True)
    if kind != "files":
        WRITERS[kind](link)
        assert link.is_symlink()
        assert read(path) == "new"
        assert set(tmp_path.iterdir()) == {link, path.parent}


def test_a_link_to_nothing_is_an_existing_output(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "out")
    with pytest.raises(OutputExists):
        check_output(link, None, force=False)
    check_output(link, None, force=True)
    write_file(link)
    assert link.is_symlink()
    assert (tmp_path / "out").read_text() == "new"


def test_a_name_of_the_greatest_length_is_an_output(tmp_path: Path) -> None:
    write_file(tmp_path / ("x" * 255))
    assert (tmp_path / ("x" * 255)).read_text() == "new"


def test_a_stream_receives_a_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    check_output(path, None, force=False)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert os.read(reader, 9) == b""
    write_file(path)
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    assert path.is_fifo()


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/2"])
def test_devices_and_descriptors_are_streams(name: str) -> None:
    check_output(Path(name), None, force=False)
    write_file(Path("/dev/null"))
    assert Path("/dev/null").is_char_device()
