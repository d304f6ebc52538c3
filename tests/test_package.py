"""The package that `pip` installs."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_marker_of_typed_packages_is_installed_at_the_root_of_the_package() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["lrzip"]
    ((source, installed),) = wheel["force-include"].items()
    assert installed == "lrzip/py.typed"
    assert (ROOT / source).read_bytes() == b""
    assert wheel["exclude"] == [source]
