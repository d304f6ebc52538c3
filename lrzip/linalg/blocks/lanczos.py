"""Leading eigenvectors of a symmetric matrix by block Lanczos with a random start.

The block Krylov space span{X, GX, …, GᵏX} holds far better approximations than the last block alone, which is what
subspace iteration keeps (Golub & Underwood 1977; Musco & Musco 2015, algorithm 2). On slowly falling spectra some
1.5 to 2 vectors for each one wanted are enough.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log2

import torch
from torch import Generator, Tensor

from lrzip.linalg.blocks.certificate import ritz_gap
from lrzip.linalg.blocks.estimate import NormBounds, lanczos_norm
from lrzip.linalg.blocks.gram import rounding

# Columns of a block: wide enough for matrix products to run at full speed, few enough to waste none on short spaces.
_BLOCK = 64
_NARROW_BLOCK = 32
# Probes of the complement of a Krylov space, and by how much what they vouch for exceeds what they find, at n = 2000.
_STEPS, _PROBES, _RELATION = 4, 16, 2.2
# Where in the order of all Ritz values stands the norm of the complement, on slowly falling spectra.
_SHARE = 0.4


@dataclass(frozen=True)
class Ritz:
    """Approximate leading eigenpairs.

    Attributes:
        values: (rank,) float64, descending; none is above the eigenvalue it approximates, up to rounding.
        vectors: (n, rank), orthonormal, in the dtype computed in.
        missed: Bound on the sum of the leading `rank` eigenvalues less that of `values`, but for rounding.
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

    The space grows until its vectors miss at most `tolerance` of the energy that any `rank` vectors must leave, with
    what rounding may add, or until only rounding is left. All vectors are orthogonalized against all others, twice.

    What they miss is at most Σ‖ρᵢ‖, the sum of the norms of the residuals of the leading Ritz pairs: an eigenvalue
    within ‖ρᵢ‖ belongs to each (Parlett 1998, section 11.5), and these are the leading ones unless the complement of
    the space holds one that is larger than the last. Clusters wider than a block can hide there, so probes look for
    them: they overlook one that is 2.2 times larger with a probability of 1e-6 (`blocks.estimate`). Where what
    they find there is small enough, a bound by the squares of the residuals is met earlier
    (`lrzip.linalg.blocks.certificate.ritz_gap`).

    Args:
        apply: x (n, l) ↦ Gx.
        rank: Eigenpairs wanted, at least 1.
        start: The first block (n, `block_size(rank)`), random; float32 or float64, in which all is computed.
        trace: Of G.
        tolerance: See above.
        limit: Largest dimension of the Krylov space.
        generator: Source of probes, on the CPU.

    Returns:
        The eigenpairs, or None if the limit does not suffice.
    """
    n, block = start.shape
    basis = start.new_empty(min(limit, n) // block * block, n).mT  # column after column
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
                rest = rest_norm(apply, known, generator)
                leads = missed <= allowed and rest.lower <= float(leading[-1]) + rounded
                bound = missed if leads else _gap(within, image, rest.upper, rank)
                if bound <= allowed:
                    return Ritz(leading, known @ coefficients, bound)
            check = end + block * _steps_to_go(missed / allowed)
        columns = _orthonormal_to(known, image - known @ (known.mT @ image))
    return None


def block_size(rank: int) -> int:
    """Return how many columns a block has."""
    return _BLOCK if rank >= _BLOCK else _NARROW_BLOCK


def expected_dimension(rank: int) -> int:
    """Return the dimension at which convergence is first looked at: what σᵢ ∝ i^-½ took."""
    return int(1.6 * rank + (4 if rank >= _BLOCK else 3) * block_size(rank))


def _steps_to_go(excess: float) -> int:
    """Return how many blocks to add before the next look: residuals halve with each, and ever faster."""
    return min(max(round(log2(max(excess, 1.0))), 1), 6)


def _ritz(projected: Tensor, image: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return all Ritz values, coefficients (size, rank) of the leading ones in the basis, and their residuals' sum.

    Of the basis only the last block has a residual, `image` (n, block).
    """
    values, vectors = torch.linalg.eigh(projected)
    coefficients = vectors[:, -rank:].flip(1)
    residuals = torch.linalg.vector_norm(image @ coefficients[-image.shape[1] :], dim=0)
    return values.flip(0).double(), coefficients, float(residuals.sum(dtype=torch.float64))


def _gap(projected: Tensor, image: Tensor, rest: float, rank: int) -> float:
    """Return the bound on what the leading Ritz values miss that follows from the norm of the complement."""
    if rest >= float(projected.diagonal().max()):
        return inf
    block = image.shape[1]
    coupling = torch.zeros_like(projected)
    coupling[-block:, -block:] = image.mT @ image
    return ritz_gap(projected, coupling, rest, rank)


def rest_norm(apply: Callable[[Tensor], Tensor], basis: Tensor, generator: Generator) -> NormBounds:
    """Return bounds on the norm of a positive semidefinite operator on the complement of an orthonormal basis.

    Args:
        apply: x (n, l) ↦ Gx.
        basis: (n, size), in the dtype that is computed in.
        generator: Source of probes, on the CPU.
    """

    def complement(columns: Tensor) -> Tensor:
        result: Tensor = columns - ((columns.mT @ basis) @ basis.mT).mT  # few rows from the left are fast in BLAS
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


def _orthonormal_to(known: Tensor, columns: Tensor) -> Tensor:
    """Return an orthonormal basis of columns that are orthogonal to others but for rounding.

    Where nothing new is left in some of them, Householder QR of all makes up directions, at a cost that is rarely paid.
    """
    result = _orthonormal(columns)
    limit = columns.shape[0] ** 0.5 * torch.finfo(columns.dtype).eps
    if result is None or float(torch.linalg.vector_norm(known.mT @ result, ord=torch.inf)) > limit:
        result = torch.linalg.qr(torch.cat([known, columns], dim=1)).Q[:, known.shape[1] :]
    return result


def _orthonormal(columns: Tensor) -> Tensor | None:
    """Return an orthonormal basis by CholeskyQR twice (Yamamoto et al. 2015), or None for dependent columns."""
    once = _cholesky_qr(columns)
    return None if once is None else _cholesky_qr(once)


def _cholesky_qr(columns: Tensor) -> Tensor | None:
    """Return columns R⁻¹, or None if they are too dependent for their Gram matrix to tell."""
    upper, info = torch.linalg.cholesky_ex(columns.mT @ columns, upper=True)
    diagonal = upper.diagonal()
    # The Gram matrix squares the condition number, so that it must stay below eps^-½, with a margin.
    if int(info) or float(diagonal.min()) < 30 * torch.finfo(columns.dtype).eps ** 0.5 * float(diagonal.max()):
        return None
    result: Tensor = torch.linalg.solve_triangular(upper, columns, upper=True, left=False)
    return result
