"""Run lrzip on mutated files of every kind that it reads: `python -m tests.campaigns.mutate --files 20000 --seed 0`.

Each file is mutated by what it consists of, and read by one command in a worker process that serves many files. Every
command must end with a documented exit code and within a time, without an uncaught exception, an allocation above 2 GB,
or a changed input; where it refuses, with one line and without anything written. The faults are printed and written as
JSON, and the exit status is 1 if there are any. A single case is repeated by `--only NUMBER`.
"""

import argparse
import importlib
import json
import os
import pkgutil
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import lrzip
from tests.campaigns.seeds import build
from tests.campaigns.worker import limit_resources, try_case

_RESULTS = Path(__file__).parent / "results"
_FILES_PER_WORKER = 400
_SECONDS = 60.0
Try = Callable[[int], dict[str, Any]]


class Worker:
    """A process forked from this one, which has everything imported, and tries one case after another."""

    def __init__(self, attempt: Try) -> None:
        ask_end, self._ask = os.pipe()
        self._answer, answer_end = os.pipe()
        self.left = _FILES_PER_WORKER
        self.process = os.fork()
        if not self.process:
            os.close(self._ask)
            _serve(ask_end, answer_end, attempt)
        os.close(ask_end)
        os.close(answer_end)

    def attempt(self, number: int) -> dict[str, Any] | str:
        """Return the result of a case, or how the process ended."""
        self.left -= 1
        os.write(self._ask, f"{number}\n".encode())
        end, answer = monotonic() + _SECONDS, b""
        while not answer.endswith(b"\n"):
            if not select.select([self._answer], [], [], max(end - monotonic(), 0))[0]:
                os.kill(self.process, signal.SIGKILL)
                return f"hang: more than {_SECONDS:g} s"
            chunk = os.read(self._answer, 1 << 16)
            if not chunk:
                return "crash"
            answer += chunk
        result: dict[str, Any] = json.loads(answer)
        return result

    def end(self) -> int:
        """End the process and return its exit code, negative for a signal."""
        os.close(self._ask)
        os.close(self._answer)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def _serve(ask: int, answer: int, attempt: Try) -> None:
    """Try the cases whose numbers are asked for, until there are no more."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):  # libraries in C print to these
            os.dup2(null, stream)
        limit_resources()
        with os.fdopen(ask) as numbers:
            for line in numbers:
                os.write(answer, json.dumps(_tried(int(line), attempt)).encode() + b"\n")
    finally:
        os._exit(0)


def _tried(number: int, attempt: Try) -> dict[str, Any]:
    try:
        return attempt(number)
    except Exception as error:
        return {"case": number, "faults": [f"campaign: {traceback.format_exc()[-600:]} {type(error).__name__}"]}


def campaign(numbers: Iterable[int], attempt: Try) -> Iterator[dict[str, Any]]:
    """Yield the result of each case."""
    worker: Worker | None = None
    for number in numbers:
        worker = worker or Worker(attempt)
        result = worker.attempt(number)
        if isinstance(result, str):
            code = worker.end()
            name = signal.Signals(-code).name if code < 0 and result == "crash" else ""
            worker, result = None, {"case": number, "faults": [f"{result} {name}".strip()]}
        elif not worker.left:
            worker.end()
            worker = None
        yield result
    if worker:
        worker.end()


def main() -> None:
    """Run a campaign and write its result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=20_000, help="number of mutated files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="number of a single case, whose files are kept")
    parser.add_argument("--kinds", nargs="*", help="kinds of files, all by default")
    parser.add_argument("--output", type=Path, default=_RESULTS / "mutate.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    _import_all()
    start = monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        valid, works = Path(folder) / "valid", Path(folder) / "works"
        for path in (valid, works):
            path.mkdir()
        seeds = {name: seed for name, seed in build(valid).items() if not options.kinds or name in options.kinds}
        built = monotonic()

        def attempt(number: int) -> dict[str, Any]:
            work = works / str(number)
            try:
                return try_case(number, options.seed, seeds, valid, work)
            finally:
                if options.only is None:
                    shutil.rmtree(work, ignore_errors=True)

        numbers = range(options.files) if options.only is None else [options.only]
        results = list(_shown(campaign(numbers, attempt)))
        if options.only is not None:
            shutil.copytree(works / str(options.only), Path("case"), dirs_exist_ok=True)
            print(json.dumps(results[0], indent=2), "\nIts files are in `case`.", sep="")
            return
    document = _summary(results, options.seed, built - start, monotonic() - built)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps({key: value for key, value in document.items() if key != "faulty"}, indent=2))
    sys.exit(bool(document["faulty"]))


def _import_all() -> None:
    """Import everything that commands import when they first need it, so that no worker has to."""
    for module in pkgutil.walk_packages(lrzip.__path__, "lrzip."):
        with suppress(ImportError):  # what optional packages are missing for
            if module.name != "lrzip.__main__":
                importlib.import_module(module.name)


def _shown(results: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for count, result in enumerate(results, 1):
        for fault in result["faults"]:
            print(f"{result['case']} {result.get('kind', '')}: {fault}", flush=True)
        if count % 1000 == 0:
            print(f"{count} files", file=sys.stderr, flush=True)
        yield result


def _summary(results: list[dict[str, Any]], seed: int, seconds_built: float, seconds: float) -> dict[str, Any]:
    faulty = [result for result in results if result["faults"]]
    kinds = Counter(str(result.get("kind", "lost")) for result in results)
    return {
        "seed": seed,
        "files": len(results),
        "files_by_kind": dict(sorted(kinds.items())),
        "exit_codes": dict(sorted(Counter(str(result.get("code")) for result in results).items())),
        "faults": dict(Counter(fault.partition(":")[0] for result in faulty for fault in result["faults"])),
        "seconds_to_build": round(seconds_built, 1),
        "files_per_second": round(len(results) / seconds, 1),
        "faulty": faulty,
    }


if __name__ == "__main__":
    main()
