"""Factorize the layers of a live network, without a file."""

from typing import Unpack

from torch import nn

from lrzip.api.keywords import FACTORIZE_GROUPS, CalibrationKeywords, FactorizeOptions, LiveKeywords
from lrzip.calibration.settings import CalibrationSettings
from lrzip.core.declarations import Options, documented
from lrzip.core.errors import UsageError
from lrzip.core.options import CalibrationData, Factoring, LayerRules, Machine, Selection, Target
from lrzip.formats.live import LiveSource
from lrzip.pipeline.request import request_of, target_of
from lrzip.pipeline.session import RUN_UNITS, Session
from lrzip.pipeline.setup import Setup


@documented(FactorizeOptions, *FACTORIZE_GROUPS)
def factorize(model: nn.Module, **options: Unpack[FactorizeOptions]) -> nn.Module:
    """Replace layers of a network by `nn.Sequential`s of low-rank factors.

    The result is the network that `load_into` builds from the checkpoint that `lrzip.compress(…, model=model)` writes
    with the same options. Device, dtype, mode and `requires_grad` of each layer are kept.

    Args:
        model: The network.
        **options: Keywords as declared in `lrzip.core.options`. Exactly one of `energy`, `ratio`, `rank`, `error`,
            `vbmf` and `budget` is required.

    Returns:
        The network, of ordinary modules; only nn.MultiheadAttention becomes a module of `lrzip.networks.attention`.

    Raises:
        UsageError: Options contradict each other or are out of range.
        LrzipError: The factorization failed; `model` is unchanged.
    """
    given = Options("factorize", FactorizeOptions, options)
    request = request_of(target_of(given[Target]), given[Selection], given[Factoring], given[LayerRules].layers)
    if request.unit in RUN_UNITS:
        raise UsageError(
            f"A budget of `{request.unit}` is for `lrzip.compress` with a network and input shapes. Give another."
        )
    live = given[LiveKeywords]
    device = live.device or str(next((parameter.device for parameter in model.parameters()), "cpu"))
    setup = Setup(
        calibrate=given[CalibrationData].calibrate,
        calibration=given[CalibrationKeywords].calibration or CalibrationSettings(),
        machine=Machine(device, live.progress),
    )
    session = Session(LiveSource(model), request, setup)
    return session.network(session.plan(), model if live.inplace else None)
