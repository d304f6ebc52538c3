"""The public verbs, one a file."""
