"""Run the command: in this process, which is fast, or in one of its own, which is the real thing."""

import io
import signal
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

from lrzip.cli.main import main

Done = subprocess.CompletedProcess[bytes]


def run(*arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None) -> Done:
    """Return what `lrzip` with these arguments does with pipes on all three streams."""
    command = ["lrzip", *map(str, arguments)]
    saved = sys.argv, sys.stdin, sys.stdout, sys.stderr
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    try:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = command, io.TextIOWrapper(io.BytesIO(stdin)), out, err
        with chdir(cwd or Path.cwd()):
            main()
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = saved
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(command, code, *(_content(stream) for stream in (out, err)))


def spawn(*arguments: str | Path) -> list[str]:
    """Return the command line of a process of its own."""
    return [sys.executable, "-m", "lrzip", *map(str, arguments)]


def error_of(done: Done, code: int) -> str:
    """Return the one line of an error, after checking that it is one, with the exit code."""
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert done.stdout == b""
    assert text.startswith("lrzip: ")
    assert text.count("\n") == 1
    return text


def _content(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue()
