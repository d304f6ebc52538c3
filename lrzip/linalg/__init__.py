"""Linear algebra on tensors: the public functions, built from the parts in `lrzip.linalg.blocks`."""
