"""Run a command on a mutated file in this process, and say what is wrong with how it ended."""

import os
import re
import resource
import shutil
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from tests.campaigns.seeds import Seed
from tests.support.shell import run

_MEMORY = 2 << 30
_FILE_SIZE = 1 << 28
_INTERNAL = re.compile(r"internal error|INTERNAL ASSERT|enforce fail|file an issue|Traceback", re.IGNORECASE)
_ALLOCATION = re.compile(r"out of memory|can't allocate|cannot allocate|bad_alloc|allocate memory", re.IGNORECASE)


def limit_resources() -> None:
    """Let allocations of more than 2 GB fail, and writing of large files."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_SIZE, _FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")


def try_case(number: int, seed: int, seeds: Mapping[str, Seed], valid: Path, work: Path) -> dict[str, Any]:
    """Mutate a file, run a command on it, and return what is wrong, if anything.

    Args:
        number: Number of the case, which together with `seed` determines it.
        seed: Seed of the campaign.
        seeds: Valid files by name.
        valid: Folder of the valid files.
        work: Folder for this case, which does not exist yet.
    """
    random = Random(f"{seed}:{number}")
    kind = random.choices(list(seeds), [item.share for item in seeds.values()])[0]
    chosen = seeds[kind]
    target = _mutated(chosen, work, random)
    command = random.choices([line for _, line in chosen.commands], [share for share, _ in chosen.commands])[0]
    name = target.name if chosen.path.is_file() else chosen.path.name
    line = [part.format(valid=valid, input=name, suffix=".pt") for part in command]
    before = _contents(work)
    faults, code = _run(line, work, name)
    if code is not None:
        faults += _changes(work, before, code, name)
    if not faults and code == 0 and random.random() < 0.2:
        faults += _reread(line, work)
    return {"case": number, "kind": kind, "command": " ".join(line), "code": code, "faults": faults}


def _mutated(seed: Seed, work: Path, random: Random) -> Path:
    """Copy a seed with one file mutated and return that file."""
    work.mkdir()
    if seed.path.is_file():
        target = work / ("in" + seed.path.suffix)
        shutil.copy(seed.path, target)
    else:
        shutil.copytree(seed.path, work / seed.path.name)
        target = random.choice(sorted((work / seed.path.name).glob("*.*")))
    data = target.read_bytes()
    for _ in range(random.choice((1, 1, 1, 2))):
        with suppress(Exception):  # a second mutation may find nothing to change
            data = seed.mutate(target.name)(data, random)
    target.write_bytes(data)
    return target


def _run(line: list[str], work: Path, name: str) -> tuple[list[str], int | None]:
    try:
        done = run(*line, cwd=work)
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
        return [f"memory: {text}" if isinstance(error, MemoryError) else f"exception: {text}"], None
    said, code = done.stderr.decode(errors="replace"), done.returncode
    lines = [text for text in said.splitlines() if text.strip()]
    faults = []
    if code not in (0, 1, 2, 3):
        faults.append(f"exit code {code}")
    if _ALLOCATION.search(said):
        faults.append(f"memory: {said[:200]}")
    if found := _INTERNAL.search(said):
        faults.append(f"internal: {said[max(found.start() - 80, 0) : found.end() + 80]}")
    if code in (1, 2) and (len(lines) != 1 or not said.startswith("lrzip: ") or len(said) > 1000):
        faults.append(f"message: {len(lines)} lines, {len(said)} characters: {said[:200]}")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said):
        faults.append(f"control characters: {said[:200]!r}")
    if code in (1, 2) and not faults and name not in said:
        faults.append(f"unnamed: {said[:200]}")
    return faults, code


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and ".states" not in str(path))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _changes(work: Path, before: Mapping[str, bytes], code: int, name: str) -> list[str]:
    """Return how a command changed its inputs, or what it left although it refused."""
    after = _contents(work)
    faults = [f"leaves {file}" for file in after.keys() - before.keys() if code in (1, 2)]
    faults += [f"leaves {path.name}" for path in work.glob(".lrzip-*")]
    for file, content in before.items():
        is_kept = name.endswith((".jsonl", "in.pt")) and code == 0  # results that are appended, or a state
        if after.get(file) != content and not is_kept:
            faults.append(f"changes {file}")
    return faults


def _reread(line: list[str], work: Path) -> list[str]:
    """Return whether an output cannot be read again."""
    written = next((work / line[at + 1] for at, part in enumerate(line[:-1]) if part == "-o"), None)
    if written is None or not written.exists():
        return []
    faults, code = _run(["analyze", written.name, "--json", "-q"], work, written.name)
    return [f"output: {fault}" for fault in faults] + ([f"output: exit code {code}"] if code else [])
