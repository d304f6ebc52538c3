from dataclasses import replace

from lrzip.core.spectrum import Spectrum
from lrzip.linalg.vbmf import noise_rank
from lrzip.ranks.vbmf import VBMF
from tests.support.candidates import EPS, candidate, choose
from tests.support.matrices import noisy, slow, zero


def test_the_rank_is_that_of_the_estimator_for_every_unfolding_and_at_least_one() -> None:
    spectra = tuple(Spectrum(values(40), (40, 60), EPS) for values in (noisy, slow, zero))
    expected = [noise_rank(values, (40, 60)).rank for values in (noisy(40), slow(40))]
    assert expected[0] == 5
    assert choose(VBMF(), [replace(candidate(40, 60), spectra=spectra)]).ranks == {"x": (*expected, 1)}


def test_only_exact_singular_values_settle_the_rank() -> None:
    exact = candidate(40, 60)
    inexact = replace(exact, spectra=tuple(replace(spectrum, slack=1e-12) for spectrum in exact.spectra))
    assert VBMF().settled(exact)
    assert not VBMF().settled(inexact)
