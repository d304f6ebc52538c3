"""Archives that torch never writes are refused before anything in them is read."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from lrzip.core.errors import UnsupportedCheckpoint
from lrzip.formats.files.archive import checked_members

CODE = r"code/.*"


def archive(path: Path, members: Mapping[str, bytes], *, compressed: bool = False) -> Path:
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def test_members_of_a_plain_archive_are_returned(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", {"a/data.pkl": b"x", "a/data/0": bytes(64)})
    assert [(member.filename, member.file_size) for member in checked_members(path)] == [
        ("a/data.pkl", 1),
        ("a/data/0", 64),
    ]


def test_compressed_members_are_refused_unless_they_may_be(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", {"code/a.py": bytes(100)}, compressed=True)
    assert len(checked_members(path, compressed=CODE)) == 1
    with pytest.raises(UnsupportedCheckpoint, match=r"compressed member `code/a\.py`"):
        checked_members(path)


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../../b", ".."])
def test_names_that_point_outside_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="points outside of the archive"):
        checked_members(archive(tmp_path / "a.pt", {name: b"x"}))


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        file.writestr("a", b"x")
        file.writestr("a", b"y")
    with pytest.raises(UnsupportedCheckpoint, match="two members of the same name"):
        checked_members(tmp_path / "a.pt")


def test_code_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrzip.formats.files.archive._UNPACKED_LIMIT", 99)
    path = archive(tmp_path / "a.pt", {"code/a.py": bytes(100)}, compressed=True)
    with pytest.raises(UnsupportedCheckpoint, match="more code than any program needs"):
        checked_members(path, compressed=CODE)


def test_members_that_claim_more_bytes_than_the_file_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.pt", {"a": bytes(100)})
    data = path.read_bytes()
    position = data.index(b"PK\x01\x02")  # the directory, in which the size stands at offset 24
    path.write_bytes(data[: position + 24] + (1 << 20).to_bytes(4, "little") + data[position + 28 :])
    with pytest.raises(UnsupportedCheckpoint, match="claim more bytes than the file has"):
        checked_members(path)
