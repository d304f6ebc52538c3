"""Run a command in a Python where compressed folders load: `python -m lrzip.hf optimum-cli export onnx -m small out`.

The command is an installed console script, or a module as for `python -m`.
"""

import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from runpy import run_module

import lrzip.hf  # noqa: F401  # registers the quantizer


def main() -> None:
    """Run the command that the arguments name, with the arguments that follow it."""
    if len(sys.argv) < 2:
        sys.exit("Usage: python -m lrzip.hf COMMAND [ARGUMENTS]…, with a console script or a module as COMMAND.")
    del sys.argv[0]
    name = sys.argv[0]
    script = next(iter(entry_points(group="console_scripts", name=name)), None)
    if script:
        sys.exit(script.load()())
    if not name.replace(".", "").isidentifier() or find_spec(name) is None:
        sys.exit(f"`{name}` is neither a console script of an installed package nor a module.")
    run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
