"""Run commands and functions in separate processes, and measure their time and memory."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter


@dataclass(frozen=True)
class Usage:
    """Resources of a process: wall and CPU time in seconds, and peak resident memory in bytes."""

    seconds: float
    cpu_seconds: float
    peak: int

    @property
    def cores(self) -> float:
        """Average number of busy cores."""
        return self.cpu_seconds / self.seconds


def usage_of(command: Sequence[str], output: Path | None = None) -> Usage:
    """Run a command with its standard output in a file, and return its usage of resources."""
    start = perf_counter()
    with Path(output or os.devnull).open("wb") as file:
        process = subprocess.Popen(command, stdout=file)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
    seconds = perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def apart(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in a separate process."""
    process = get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"`{function.__name__}` failed with exit code {process.exitcode}.")
