"""Parts of which the factorizations of `lrzip.linalg` are made."""
