"""`python -m lrzip`."""

from lrzip.cli.main import main

main()
