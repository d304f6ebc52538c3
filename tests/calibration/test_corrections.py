import pytest

from lrzip.calibration.corrections import Corrections
from lrzip.core.errors import UsageError


@pytest.mark.parametrize("text", ["bias,biases", "residual", "refit,bias", "bias,response", ""])
def test_unknown_names_and_missing_requirements_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="`correct`"):
        Corrections.parse(text)


@pytest.mark.parametrize("text", ["none", "bias", "bias,sequential,refit", "sequential,response"])
def test_corrections_are_written_as_they_are_read(text: str) -> None:
    assert str(Corrections.parse(text)) == text
