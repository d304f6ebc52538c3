"""Linear algebra: tensors in, tensors out. What callers use is here, what it is made of in `blocks`."""
