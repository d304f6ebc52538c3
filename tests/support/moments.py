"""Moments of random inputs."""

import torch
from torch import Generator

from lrzip.core.moments import Moments


def correlated_moments(size: int, groups: int = 1, count: int = 4000) -> Moments:
    """Return the moments of correlated inputs whose standard deviations differ by up to a factor of 100."""
    generator = Generator().manual_seed(0)
    mixing = torch.randn(groups, size, size, dtype=torch.float64, generator=generator)
    scaled = mixing * torch.logspace(-1, 1, size, dtype=torch.float64)
    return Moments(scaled.mT @ scaled / size, torch.zeros(groups, size, dtype=torch.float64), count)
