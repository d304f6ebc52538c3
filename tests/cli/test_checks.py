"""Options that go together, by the command line's own table."""

import pytest

from tests.support.shell import error_of, run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-drop", "1", "--calibrate", "x.npz"], "decides on all ranks itself, so it goes without `--calibrate`"),
        (["--max-drop", "1"], "`--max-drop` needs `--model PKG.MOD:NET`."),
        (["--rank", "2", "--data", "x.npz"], "goes with `--max-drop D`, or with several budgets and `--dry-run`"),
        (["--rank", "2", "--plot", "a.png"], "`--plot` goes with `--max-drop D`, or with several budgets"),
        (["--rank", "2", "--epochs", "3"], "`--epochs` goes with `--max-drop D`, which is missing."),
        (["--rank", "2", "--mean", "1"], "`--mean` goes with `--calibrate SPEC`, which is missing."),
        (["--rank", "2", "--reconstruct", "5"], "`--reconstruct` goes with `--calibrate SPEC`, which is missing."),
        (["--rank", "2", "--model-arg", "a=1"], "`--model-arg` goes with `--model PKG.MOD:NET`, which is missing."),
        (["--budget", "params=5%,9%", "--dry-run", "--latency"], "several amounts goes without `--latency`."),
        (["--budget", "params=5%,9%", "--dry-run", "--val", "x"], "`--val` goes with `--data SPEC`, which is missing."),
        (
            ["--budget", "params=5%,9%", "--dry-run", "--std", "1"],
            "`--std` goes with `--calibrate SPEC` or `--data SPEC`, which is missing.",
        ),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(options: list[str], message: str) -> None:
    assert message in error_of(run("compress", "missing.pt", *options), 2)


@pytest.mark.parametrize("flag", ["--min-ratio", "--max-error", "--energy", "--ratio", "--tolerance"])
def test_no_number_is_nan(flag: str) -> None:
    options = ["--rank", "2"] if flag not in ("--energy", "--ratio") else []
    assert f"`{flag}` takes a number, got nan." in error_of(run("compress", "missing.pt", *options, flag, "nan"), 2)
    assert "takes a number" in error_of(run("analyze", "missing.pt", "--energy", "0.5", "--energy", "nan"), 2)


def test_a_dry_run_has_no_errors_that_a_gate_could_check() -> None:
    done = run("compress", "missing.pt", "--rank", "2", "--dry-run", "--max-error", "0.1")
    assert "`--max-error` and `--dry-run` exclude each other" in error_of(done, 2)


def test_options_of_other_commands_are_checked_alike() -> None:
    assert "`--cache` goes with `--sensitivity`" in error_of(run("analyze", "missing.pt", "--cache", "c.jsonl"), 2)
    assert "`--model-arg` goes with `--model" in error_of(
        run("export", "a.pt", "--to", "dense", "--model-arg", "a=1"), 2
    )
