"""Messages are suppressed in the context, and only there."""

import logging
import warnings

import pytest

from lrzip.networks.programs.silence import silenced


def test_warnings_and_log_messages_are_suppressed_in_the_context_only(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torch.export")
    with pytest.warns(UserWarning, match="after") as caught:
        with silenced():
            warnings.warn("within", stacklevel=1)
            logger.error("within")
        warnings.warn("after", stacklevel=1)
        logger.error("after")
    assert [str(warning.message) for warning in caught] == ["after"]
    assert [record.message for record in caplog.records] == ["after"]


def test_messages_return_after_an_exception() -> None:
    with pytest.raises(RuntimeError), silenced():
        raise RuntimeError
    assert logging.root.manager.disable == 0
