import json
from pathlib import Path

import jsonschema

from tests.checkpoints import nested, safetensors
from tests.cli.schemas import EXPORT
from tests.cli.shell import error_of, run


def test_json_follows_the_schema(tmp_path: Path) -> None:
    run("compress", nested(tmp_path), "--ratio", "2", "-o", tmp_path / "small.ckpt")
    for to in ("safetensors", "state-dict", "dense"):
        done = run("export", tmp_path / "small.ckpt", "--to", to, "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        jsonschema.validate(document, EXPORT)
        assert Path(document["output"]).exists()
        assert bool(document["multiplied"]) == (to == "dense")


def test_exports_go_through_pipes(tmp_path: Path) -> None:
    path = safetensors(tmp_path)
    small = run("compress", "--ratio", "2", stdin=path.read_bytes()).stdout
    done = run("export", "--to", "dense", stdin=small)
    assert b"layers multiplied back" in done.stderr
    totals = [
        json.loads(run("analyze", "--json", stdin=data).stdout)["totals"] for data in (done.stdout, path.read_bytes())
    ]
    assert totals[0]["parameters"] == totals[1]["parameters"]


def test_wrong_usage(tmp_path: Path) -> None:
    path = nested(tmp_path)
    assert "--to" in error_of(run("export", path), 2)
    assert "`to` must be one of safetensors, state-dict, dense, got tflite" in error_of(
        run("export", path, "--to", "tflite"), 2
    )
    assert "no factorized layers" in error_of(run("export", path, "--to", "dense"), 1)
    (tmp_path / "nested.safetensors").touch()
    assert "Pass `--force`" in error_of(run("export", path, "--to", "safetensors"), 1)
