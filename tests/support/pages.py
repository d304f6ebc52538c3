"""Code blocks of the READMEs and of the pages in `docs/`, and the shell commands in them."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lrzip

ROOT = Path(lrzip.__file__).parents[1]
PAGES: Mapping[str, Path] = {
    str(path.relative_to(ROOT)): path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "samples" / "README.md")
}
_FENCE = re.compile(r"^```(.*)\n((?:(?!```).*\n)*)```$", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_OPERATORS = {"&&", "|", "<", ">"}


@dataclass(frozen=True)
class Block:
    """A fenced block: the text after the opening fence, such as `sh needs-data`, and the lines within."""

    info: str
    text: str


@dataclass(frozen=True)
class Command:
    """One program of a pipeline, with its redirections."""

    words: Sequence[str]
    stdin: str | None = None
    stdout: str | None = None


def blocks_of(page: str) -> Sequence[Block]:
    """Return all fenced blocks of a page."""
    text = PAGES[page].read_text(encoding="utf-8")
    found = [Block(info, body) for info, body in _FENCE.findall(text)]
    assert 2 * len(found) == text.count("```"), f"{page} has a fence without its counterpart"
    return found


def prose_of(page: str) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", PAGES[page].read_text(encoding="utf-8"))


def inline_code_of(page: str) -> Sequence[str]:
    """Return all code spans of the prose of a page."""
    return _INLINE.findall(re.sub(r"\n", " ", prose_of(page)))


def pipelines_of(text: str) -> Iterator[Sequence[Command]]:
    """Yield the pipelines of shell lines, in the order in which they run; `&&` is taken for a line end."""
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>&")
        lexer.whitespace_split = True
        for part in _split(list(lexer), "&&"):
            yield [_command(words) for words in _split(part, "|")]


def _split(words: Sequence[str], separator: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == separator:
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def _command(words: Sequence[str]) -> Command:
    plain: list[str] = []
    streams: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word in ("<", ">"):
            streams[word] = next(rest)
        else:
            assert word not in _OPERATORS
            plain.append(word)
    return Command(plain, streams.get("<"), streams.get(">"))
