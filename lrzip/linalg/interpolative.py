"""Interpolative decomposition: rows of a matrix that span all others, with bounded coefficients."""

import torch
from torch import Tensor

from lrzip.linalg.blocks.scaling import unit_scaled

# Largest coefficient: the f of Gu & Eisenstat (1996), for which Halko et al. use 2.
_LARGEST_COEFFICIENT = 2.0


def row_interpolative(basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of l rows of an orthonormal basis, and coefficients that express all rows by these.

    basis = x @ basis[indices], with x[indices] the identity and |x| ≤ 2: an interpolative decomposition in the sense of
    Halko, Martinsson & Tropp (2011), section 3.2.3. It starts from the rows that LU with partial pivoting selects, then
    swaps in a row whenever its coefficient exceeds 2 (maxvol; Goreinov et al. 2010, 'How to find a good submatrix').
    Every swap more than doubles |det basis[indices]| ≤ 1, so the number of swaps is finite: none or one for random
    bases of up to 200 vectors.

    Args:
        basis: Shape (m, l), orthonormal columns, float32 or float64.

    Returns:
        indices (l,) int64, in no particular order, and x (m, l) in the dtype of `basis`, both on its device. The
        identity in x is exact; the other rows have the rounding errors of a solve with basis[indices], whose condition
        number is at most √(1 + 4 l (m − l)).
    """
    indices = _pivoted_rows(basis)
    x = _coefficients(basis, indices)
    while True:
        row, column = divmod(int(x.abs().argmax()), x.shape[1])
        if abs(float(x[row, column])) <= _LARGEST_COEFFICIENT:
            return indices, x
        indices[column] = row
        x = _coefficients(basis, indices)


def row_extraction_svd(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return an SVD from a basis of the range and l rows of the matrix that span the others.

    Halko, Martinsson & Tropp (2011), algorithm 5.2. It reads only those l rows, in O((m + n) l²) operations instead of
    the O(mnl) of `direct_svd`, at a loss of accuracy: ‖A − u s vh‖₂ ≤ [1 + √(1 + 4 l (m − l))] · ‖A − QQᵀA‖₂
    (lemma 5.1).

    Args:
        matrix: Real and finite, shape (m, n), float32 or float64.
        basis: q (m, l) with orthonormal columns, l ≤ min(m, n), in the dtype of `matrix`.

    Returns:
        u (m, l), s (l,) descending, vh (l, n), in the dtype and on the device of `matrix`. u has orthonormal columns
        and vh orthonormal rows.
    """
    indices, x = row_interpolative(basis)
    rows = unit_scaled(matrix[indices])
    w, r = torch.linalg.qr(rows.matrix.mT * rows.before * rows.after)  # (n, l), (l, l)
    u, s, vh = torch.linalg.svd(x @ r.mT, full_matrices=False)
    return u, rows.restore(s), vh @ w.mT


def _pivoted_rows(basis: Tensor) -> Tensor:
    """Return the indices of the rows that LU with partial pivoting selects."""
    m, size = basis.shape
    pivots: list[int] = torch.linalg.lu_factor(basis).pivots.tolist()
    order = list(range(m))
    for step, pivot in enumerate(pivots):
        order[step], order[pivot - 1] = order[pivot - 1], order[step]
    return torch.tensor(order[:size], device=basis.device)


def _coefficients(basis: Tensor, indices: Tensor) -> Tensor:
    x: Tensor = torch.linalg.solve(basis[indices], basis, left=False)
    x[indices] = torch.eye(len(indices), dtype=basis.dtype, device=basis.device)
    return x
