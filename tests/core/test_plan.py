from dataclasses import replace

import pytest

from lrzip.core.layers import TensorSpec
from lrzip.core.plan import fingerprint

SPECS = {name: TensorSpec(name, (4, 3), "float32", 48) for name in ("a.weight", "b.weight")}


@pytest.mark.parametrize(
    "changed",
    [{"dtype": "bfloat16"}, {"shape": (3, 4)}, {"name": "c.weight"}],
    ids=["dtype", "shape", "name"],
)
def test_the_fingerprint_depends_on_names_shapes_and_dtypes(changed: dict[str, object]) -> None:
    other = replace(SPECS["a.weight"], **changed)  # type: ignore[arg-type]
    assert fingerprint({**SPECS, "a.weight": other}) != fingerprint(SPECS)


def test_the_fingerprint_does_not_depend_on_order_or_sizes() -> None:
    reordered = {name: replace(spec, nbytes=0) for name, spec in reversed(SPECS.items())}
    assert fingerprint(reordered) == fingerprint(SPECS)
