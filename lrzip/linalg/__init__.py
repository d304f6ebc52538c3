"""Numerical linear algebra on tensors: no names, no files, no printing."""
