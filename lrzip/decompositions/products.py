"""Approximations of a matrix by a product of two, with the factors in the dtype in which they are stored.

All factors are balanced: the singular values are split as square roots over both. Balanced factors
lose the least in half precision, and fine-tuning of unbalanced ones diverges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from lrzip.core.factors import relative_error
from lrzip.core.moments import Moments
from lrzip.linalg.blocks.certificate import stored_excess
from lrzip.linalg.blocks.gram import gram, product, squared_norm, tall
from lrzip.linalg.blocks.precision import attainable
from lrzip.linalg.blocks.subnormals import stored
from lrzip.linalg.blocks.subspace import Subspace
from lrzip.linalg.svd import TruncatedSVD
from lrzip.linalg.whitening import Whitening

# A squared error below this share of ‖A‖_F² loses too many digits when it is computed as a difference of sums.
_MEASURABLE = 1e-4
# Number of rows over which inner products are summed in float32.
_ROWS = 512


@dataclass(frozen=True)
class RelativeError:
    """Relative Frobenius error of an approximation A′ of A.

    Attributes:
        value: ‖A − A′‖_F / ‖A‖_F.
        squared_norm: ‖A‖_F².
    """

    value: float
    squared_norm: float


@dataclass(frozen=True)
class Product:
    """A product L R that approximates a matrix A (m, n).

    Attributes:
        left: L (m, rank), in the stored dtype.
        right: R (rank, n), in the stored dtype.
        error: Error of L R.
        method: Name of the algorithm that computed it.
        excess: Upper bound on error / (least error of this rank) - 1; None if there is none.
        output_error: Error of L R X as an approximation of A X, if moments of the inputs X are given.
    """

    left: Tensor
    right: Tensor
    error: RelativeError
    method: str
    excess: float | None
    output_error: RelativeError | None = None


@dataclass(frozen=True)
class InputWhitening:
    """Whitening of the inputs that multiply a matrix.

    Attributes:
        whitening: Root S of the damped second moment of the inputs, and its inverse.
        second: E[x xᵀ] (n, n), or its diagonal (n,), undamped.
        multiplies_rows: Whether inputs multiply the rows of the matrix instead of its columns.
    """

    whitening: Whitening
    second: Tensor
    multiplies_rows: bool

    @classmethod
    def of_groups(cls, moments: Moments, *, multiplies_rows: bool) -> list["InputWhitening"]:
        """Return the whitening of the inputs of each group of a layer."""
        return [cls(Whitening.of(second, moments.damping), second, multiplies_rows) for second in moments.second]

    def apply(self, matrix: Tensor) -> Tensor:
        """Return A S, or S A where inputs multiply rows: the outputs up to a rotation of the inputs."""
        return self.whitening.apply(matrix.mT).mT if self.multiplies_rows else self.whitening.apply(matrix)

    def energy(self, matrix: Tensor) -> float:
        """Return E‖Ax‖², or E‖Aᵀx‖² where inputs multiply rows."""
        exact = (matrix.mT if self.multiplies_rows else matrix).double()
        second = self.second.to(exact)
        product = exact * second if second.dim() == 1 else exact @ second
        return max(float((product * exact).sum()), 0.0)

    def undo(self, found: TruncatedSVD) -> tuple[Tensor, Tensor]:
        """Return factors L (m, rank) and R (rank, n) whose product becomes U Σ Vᵀ when `apply` whitens it."""
        if self.multiplies_rows:
            return self.whitening.undo((found.u * found.s).mT).mT, found.vh
        return found.u, self.whitening.undo(found.s[:, None] * found.vh)


def split_product(matrix: Tensor, found: TruncatedSVD, dtype: torch.dtype) -> Product:
    """Return the product (U√Σ)(√ΣVᵀ) of a truncated SVD of a matrix."""
    root = found.s.sqrt()
    left, right = stored(found.u * root, dtype), stored(root[:, None] * found.vh, dtype)
    error, squared = relative_error(matrix, left, right), squared_norm(matrix)
    floor = attainable(matrix.dtype, squared)
    excess = stored_excess(found.excess, error**2 * squared, found.least, floor)
    return Product(left, right, RelativeError(error, squared), found.method, excess)


def projected_product(matrix: Tensor, subspace: Subspace, rank: int, dtype: torch.dtype) -> Product:
    """Return the product A V Vᵀ, the projection of a matrix onto its leading `rank` singular vectors.

    One factor is X = V√Σ, rounded to the stored dtype; the other one is Y = A X / Σ. The error is computed as
    ‖A − YXᵀ‖² = ‖A‖² − 2⟨AX, Y⟩ + ⟨YᵀY, XᵀX⟩, which needs no second product of the size of A. Where the error
    is too small to be computed as a difference of these sums, it is measured on the product itself.

    Args:
        matrix: A (m, n); for m < n, the roles of rows and columns are exchanged.
        subspace: Squared singular values and leading singular vectors of A.
        rank: Number of vectors, at most as many as `subspace` has.
        dtype: Stored dtype of both factors.
    """
    columns = tall(matrix)
    compute = subspace.vectors.dtype
    # Directions at the level of rounding errors are balanced as if they were just above it.
    s = subspace.squares[:rank].clamp(min=subspace.floor).sqrt().to(columns.device, compute)
    basis = stored(subspace.vectors[:, :rank] * s.sqrt(), dtype)
    image = product(columns, basis.to(compute)).div_(s)
    other = stored(image, dtype)
    inner = _column_products(image, other) @ s.double()
    del image
    overlap = gram(other, dtype=compute).double() * gram(basis, dtype=compute)
    squared = subspace.energy - 2 * float(inner) + float(overlap.sum())
    left, right = (other, basis.mT) if columns.shape == matrix.shape else (basis, other.mT)
    measurable = squared >= _MEASURABLE * subspace.energy
    error = sqrt(squared / subspace.energy) if measurable else relative_error(matrix, left, right)
    excess = stored_excess(subspace.excess(rank), error**2 * subspace.energy, subspace.least(rank), subspace.floor)
    return Product(left, right, RelativeError(error, subspace.energy), subspace.method, excess)


def whitened_product(
    matrix: Tensor, outputs: Tensor, found: TruncatedSVD, whitening: InputWhitening, dtype: torch.dtype
) -> Product:
    """Return the product with the least error of the outputs.

    Args:
        matrix: A (m, n).
        outputs: Whitened A.
        found: Truncated SVD of the whitened A.
        whitening: Whitening of the inputs.
        dtype: Stored dtype of both factors.
    """
    left, right = (stored(factor, dtype) for factor in _balance(*whitening.undo(found)))
    difference = matrix.double() - (left.double() @ right.double()).to(matrix.device)
    squared = whitening.energy(matrix)
    output_error = RelativeError(sqrt(whitening.energy(difference) / squared) if squared else 0.0, squared)
    error = RelativeError(relative_error(matrix, left, right), squared_norm(matrix))
    floor = attainable(outputs.dtype, squared_norm(outputs))
    excess = stored_excess(found.excess, squared_norm(whitening.apply(difference)), found.least, floor)
    return Product(left, right, error, found.method, excess, output_error)


def joint_error(errors: Sequence[RelativeError]) -> float:
    """Return the relative error of several matrices together: the root of the sum of squared errors over norms."""
    if len(errors) == 1:
        return errors[0].value
    total = sum(error.squared_norm for error in errors)
    return sqrt(sum(error.value**2 * error.squared_norm for error in errors) / total) if total else 0.0


def _balance(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors (m, rank) and (rank, n) of the same product with LᵀL = RRᵀ, which is diagonal."""
    (q, r), (p, t) = torch.linalg.qr(left.double()), torch.linalg.qr(right.double().mT)
    u, s, vh = torch.linalg.svd(r @ t.mT)
    root = s.sqrt()
    return (q @ (u * root)).to(left.dtype), ((p @ vh.mT) * root).mT.to(right.dtype)


def _column_products(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner products of columns, summed over `_ROWS` rows at a time in float32, then in float64."""
    rows = zip(torch.split(first, _ROWS), torch.split(second, _ROWS), strict=True)
    return torch.stack([(a * b).sum(0).double() for a, b in rows]).sum(0)
