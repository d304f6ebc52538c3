"""Linear algebra: tensors in, tensors out. Drivers for callers are here, their building blocks in `blocks`."""
