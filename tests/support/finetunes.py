"""Fine-tunes of a small classifier."""

from pathlib import Path
from typing import Any

import lrzip
from lrzip.api.finetune import FinetuneReport
from lrzip.training.settings import Settings
from tests.support.tasks import Classifier

FAST = Settings(epochs=4, batch_size=32, lr=1e-2)


def tune(folder: Path, name: str = "tuned.pt", **changes: Any) -> FinetuneReport:
    """Finetune the compressed classifier of a folder on its data."""
    options: dict[str, Any] = {
        "model": Classifier(),
        "data": str(folder / "data.npz"),
        "settings": FAST,
        "force": True,
    } | changes
    return lrzip.finetune(folder / "small.pt", folder / name, **options)
