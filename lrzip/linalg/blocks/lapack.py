"""Factorizations by LAPACK with a fallback for its failures to converge."""

import torch
from torch import Tensor

NotConverged = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # missing in torch's stubs
"""Raised by factorizations that do not converge."""


def lapack_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD by LAPACK; computed in float64 if divide-and-conquer does not converge."""
    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except NotConverged:
        # A QR factorization keeps σ but changes the norms of the columns, and with them the course of the iteration.
        q, r = torch.linalg.qr(matrix.double())
        u, s, vh = torch.linalg.svd(r, full_matrices=False)
        u = q @ u
    return u.to(matrix.dtype), s.to(matrix.dtype), vh.to(matrix.dtype)
