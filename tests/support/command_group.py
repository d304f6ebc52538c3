"""Run several `lrzip` commands in one process, so that a group of processes has to be started only once."""

import json
import sys

from lrzip.cli.main import main


def run_all(commands: list[list[str]]) -> None:
    """Run commands, each a list of arguments; stop with the exit code of the first that fails."""
    for arguments in commands:
        sys.argv = ["lrzip", *arguments]
        try:
            main()
        except SystemExit as exit_:
            if exit_.code:
                raise


if __name__ == "__main__":
    run_all(json.loads(sys.argv[1]))
