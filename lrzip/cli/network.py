"""Architectures from the command line."""

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from lrzip.cli.commands import Given

if TYPE_CHECKING:
    from torch import nn


def load_network(given: Given) -> "nn.Module | None":
    """Return the architecture that options name, if any; what its code prints goes to standard error."""
    spec = given.values["model"]
    if spec is None:
        return None
    from lrzip.networks.build import build, parse_arguments

    with redirect_stdout(sys.stderr):
        return build(spec, parse_arguments(given.values["model_arg"] or ()))
