"""Methods of `truncated_svd.py`: lrzip and the others, all with the same signature."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Generator, Tensor

from lrzip.linalg.svd import Solver, truncated_svd

OVERSAMPLE = 10
POWER_ITERATIONS = 2
LRZIP, FULL = "lrzip", "torch svd"


@dataclass(frozen=True)
class Answer:
    """u (m, rank), s (rank,) and vh (rank, n); for lrzip also its method and its bound on the excess."""

    u: Tensor
    s: Tensor
    vh: Tensor
    method: str = ""
    checked: float | None = None


Method = Callable[[Tensor, int], Answer | None]


def all_methods(device: str) -> Mapping[str, Method]:
    """Return all methods by name; those of scikit-learn and scipy only if they are installed."""
    methods: dict[str, Method] = {LRZIP: lrzip, FULL: torch_svd, "torch svd_lowrank": torch_svd_lowrank}
    methods = {name: partial(on, device, method) for name, method in methods.items()}
    if find_spec("sklearn"):
        methods["sklearn randomized_svd"] = sklearn_randomized_svd
    if find_spec("scipy"):
        methods["scipy svds"] = scipy_svds
    return methods


def on(device: str, method: Method, matrix: Tensor, rank: int) -> Answer | None:
    """Compute on a device and copy the result to the CPU, which synchronizes."""
    answer = method(matrix.to(device), rank)
    return answer and replace(answer, u=answer.u.cpu(), s=answer.s.cpu(), vh=answer.vh.cpu())


def lrzip(matrix: Tensor, rank: int) -> Answer:
    """Compute with the method that lrzip chooses."""
    found = truncated_svd(matrix, rank, solver=Solver(), generator=Generator().manual_seed(0))
    return Answer(found.u, found.s, found.vh, found.method, found.excess)


def torch_svd(matrix: Tensor, rank: int) -> Answer:
    """Compute the full SVD and truncate it."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return Answer(u[:, :rank], s[:rank], vh[:rank])


def torch_svd_lowrank(matrix: Tensor, rank: int) -> Answer:
    """Compute with torch's sketch, which uses the global random state."""
    torch.manual_seed(0)
    u, s, v = torch.svd_lowrank(matrix, q=min(rank + OVERSAMPLE, *matrix.shape), niter=POWER_ITERATIONS)
    return Answer(u[:, :rank], s[:rank], v[:, :rank].mT)


def sklearn_randomized_svd(matrix: Tensor, rank: int) -> Answer:
    """Compute with scikit-learn's sketch, which by default does not normalize between so few iterations."""
    from sklearn.utils.extmath import randomized_svd

    u, s, vh = randomized_svd(matrix.numpy(), rank, n_oversamples=OVERSAMPLE, n_iter=POWER_ITERATIONS, random_state=0)
    return Answer(torch.from_numpy(u), torch.from_numpy(s), torch.from_numpy(vh))


def scipy_svds(matrix: Tensor, rank: int) -> Answer | None:
    """Compute with ARPACK to full precision; None if it does not converge."""
    from scipy.sparse.linalg import ArpackNoConvergence, svds

    start = torch.randn(min(matrix.shape), generator=Generator().manual_seed(0))
    try:
        u, s, vh = svds(matrix.numpy(), rank, v0=start.numpy())
    except ArpackNoConvergence:
        return None
    u, s, vh = (torch.from_numpy(array.copy()) for array in (u, s, vh))  # scipy returns negative strides
    return Answer(u.flip(1), s.flip(0), vh.flip(0))
