"""Leading eigenvectors of a symmetric matrix by block Lanczos with a random start.

The block Krylov space span{X, GX, …, GᵏX} holds far better approximations than its last block alone, which is all that
subspace iteration keeps (Golub & Underwood 1977; Musco & Musco 2015, algorithm 2). For slowly decaying spectra, a
dimension of 1.5 to 2 times the number of wanted vectors is enough.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log2

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.certificate import ritz_gap
from lrzip.linalg.blocks.gram import rounding
from lrzip.linalg.blocks.norm_bounds import NormBounds, lanczos_norm
from lrzip.linalg.blocks.orthogonal import cholesky_orthonormalize, ensure_orthogonal

# Columns of a block: enough for matrix products to run at full speed, few enough not to overshoot small spaces.
_BLOCK = 64
_NARROW_BLOCK = 32
# Start vectors and steps of `rest_norm`, and the ratio of its upper and lower bounds at n = 2000. Few start vectors and
# many steps give the sharpest bounds for the same number of products.
_PROBES, _STEPS, _RELATION = 4, 16, 1.07
# Position of the norm of the complement among all Ritz values, as a share of their number, for slowly decaying spectra.
_SHARE = 0.4


@dataclass(frozen=True)
class Ritz:
    """Approximate leading eigenpairs.

    Attributes:
        values: (rank,) float64, descending; each is at most the eigenvalue it approximates, up to rounding.
        vectors: (n, rank), orthonormal, in the dtype computed in.
        missed: Upper bound on the sum of the leading `rank` eigenvalues minus the sum of `values`, up to rounding.
    """

    values: Tensor
    vectors: Tensor
    missed: float


def block_lanczos(
    apply: Callable[[Tensor], Tensor],
    rank: int,
    *,
    start: Tensor,
    trace: float,
    tolerance: float,
    limit: int,
    generator: Generator,
) -> Ritz | None:
    """Return the leading eigenpairs of a symmetric positive semidefinite operator G.

    The space grows until the energy that its vectors miss is at most `tolerance` times the energy that the best `rank`
    vectors leave, including rounding, or until only rounding is left. All vectors are orthogonalized against all
    others, twice.

    Each Ritz value has an eigenvalue within the norm of its residual (Parlett 1998, section 11.5), but these need not
    be the leading ones: clusters wider than a block can hide in the complement of the space. So random start vectors
    search the complement, and give an upper bound on its norm that fails with a probability of at most 1e-6
    (`lrzip.linalg.blocks.norm_bounds`). From it and the residuals follows the bound on the missed energy
    (`lrzip.linalg.blocks.certificate.ritz_gap`).

    Args:
        apply: x (n, l) ↦ Gx (n, l).
        rank: Number of eigenpairs, at least 1.
        start: Random first block (n, `block_size(rank)`), float32 or float64; its dtype is the dtype computed in.
        trace: Trace of G.
        tolerance: Missed energy relative to the energy that the best vectors leave.
        limit: Largest dimension of the Krylov space.
        generator: Source of the start vectors in the complement, on the CPU.

    Returns:
        The eigenpairs, or None if the space reaches its limit first.
    """
    n, block = start.shape
    basis = start.new_empty(min(limit, n) // block * block, n).mT  # column-major
    projected = start.new_empty(basis.shape[1], basis.shape[1])
    columns, check = torch.linalg.qr(start).Q, expected_dimension(rank)
    for end in range(block, basis.shape[1] + 1, block):
        basis[:, end - block : end] = columns
        known, image = basis[:, :end], apply(columns)
        coefficients = known.mT @ image
        projected[:end, end - block : end] = coefficients
        projected[end - block : end, :end] = coefficients.mT
        image -= known @ coefficients
        if end >= max(min(check, basis.shape[1]), rank):
            values, coefficients, missed = _ritz(projected[:end, :end], image, rank)
            leading = values[:rank]
            rounded = rank * rounding(leading, start.dtype)
            allowed = max(tolerance * (trace - float(leading.sum())) - 2 * rounded, rounded)
            within, usual = projected[:end, :end], _RELATION * float(values[int(_SHARE * end)])
            if missed <= allowed or _gap(within, image, usual, rank) <= allowed:
                bound = _gap(within, image, rest_norm(apply, known, generator).upper, rank)
                if bound <= allowed:
                    return Ritz(leading, known @ coefficients, bound)
                if missed <= allowed:
                    return None  # a larger space would not lower the norm of its complement by much
            check = end + block * _steps_to_go(missed / allowed)
        fresh = image - known @ (known.mT @ image)
        columns = ensure_orthogonal(known, fresh, cholesky_orthonormalize(fresh))
    return None


def block_size(rank: int) -> int:
    """Return the number of columns of a block."""
    return _BLOCK if rank >= _BLOCK else _NARROW_BLOCK


def expected_dimension(rank: int) -> int:
    """Return the dimension at which convergence is checked first: the one that a spectrum σᵢ ∝ i^-½ required."""
    return int(1.6 * rank + (4 if rank >= _BLOCK else 3) * block_size(rank))


def rest_norm(apply: Callable[[Tensor], Tensor], basis: Tensor, generator: Generator) -> NormBounds:
    """Return bounds on the norm of a positive semidefinite operator on the complement of an orthonormal basis.

    Args:
        apply: x (n, l) ↦ Gx (n, l).
        basis: (n, size), in the dtype computed in.
        generator: Source of the start vectors, on the CPU.
    """

    def complement(columns: Tensor) -> Tensor:
        result: Tensor = columns - ((columns.mT @ basis) @ basis.mT).mT  # few rows on the left are fast in BLAS
        return result

    def rest(columns: Tensor) -> Tensor:
        return complement(apply(complement(columns)))

    return lanczos_norm(
        rest,
        len(basis),
        steps=_STEPS,
        probes=_PROBES,
        generator=generator,
        dtype=basis.dtype,
        device=basis.device,
    )


def _steps_to_go(excess: float) -> int:
    """Return the number of blocks until the next check: each at least halves the residuals, later ones more."""
    return min(max(round(log2(max(excess, 1.0))), 1), 6)


def _ritz(projected: Tensor, image: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return all Ritz values, the leading Ritz vectors as coefficients (size, rank), and the sum of residual norms.

    Args:
        projected: QᵀGQ (size, size), Q being the basis.
        image: Residual GX − QQᵀGX (n, block) of the last block X of the basis; that of all other blocks is 0.
        rank: Number of leading Ritz vectors.
    """
    values, vectors = torch.linalg.eigh(projected)
    coefficients = vectors[:, -rank:].flip(1)
    residuals = torch.linalg.vector_norm(image @ coefficients[-image.shape[1] :], dim=0)
    return values.flip(0).double(), coefficients, float(residuals.sum(dtype=torch.float64))


def _gap(projected: Tensor, image: Tensor, rest: float, rank: int) -> float:
    """Return the bound of `ritz_gap` for a complement of norm `rest`; arguments as for `_ritz`."""
    block = image.shape[1]
    root = torch.linalg.qr(image, mode="r").R
    padded = torch.cat([root.new_zeros(len(root), len(projected) - block), root], dim=1)
    return ritz_gap(projected, padded, rest, rank, size=len(image))
