import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

import lrzip
from tests.support.checkpoints import BUILDERS, nested, safetensors, sharded
from tests.support.schemas import COMPRESS, CURVE
from tests.support.shell import error_of, run, spawn


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("dry", [False, True], ids=["write", "dry-run"])
def test_json_follows_the_schema(kind: str, dry: bool, tmp_path: Path) -> None:
    path = BUILDERS[kind](tmp_path)
    done = run("compress", path, "--ratio", "2", "--skip", "conv1", "--json", *(["--dry-run"] if dry else []))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, COMPRESS)
    assert document["input"] == str(path)
    assert (document["output"] is None) == dry
    assert {item["name"]: item["reason"] for item in document["kept"]}["conv1"] == "matched `--skip conv1`"
    assert all(("error" in row) != dry for row in document["layers"])


def test_a_pipe_gives_the_same_bytes_as_the_file_form(tmp_path: Path) -> None:
    for path in (nested(tmp_path), safetensors(tmp_path)):
        options = ("--energy", "0.7", "--skip", "conv1")
        run("compress", path, *options, "-o", tmp_path / "small")
        piped = run("compress", *options, stdin=path.read_bytes())
        dashed = run("compress", path, *options, "-o", "-")
        assert piped.stdout == dashed.stdout == (tmp_path / "small").read_bytes()
        assert b"layers factorized" in piped.stderr
        analyzed = json.loads(run("analyze", "--json", stdin=piped.stdout).stdout)
        assert analyzed["totals"]["tensors"] > 15
        (tmp_path / "small").unlink()


def test_json_goes_to_stderr_when_the_checkpoint_goes_to_stdout(tmp_path: Path) -> None:
    done = run("compress", "--rank", "4", "--json", stdin=nested(tmp_path).read_bytes())
    document = json.loads(done.stderr)
    jsonschema.validate(document, COMPRESS)
    assert (document["input"], document["output"]) == ("-", "-")


def test_the_table_and_the_silence(tmp_path: Path) -> None:
    path = nested(tmp_path)
    done = run("compress", path, "--rank", "4")
    text = done.stdout.decode()
    assert "conv2" in text
    assert "Left out: optimizer: its state no longer fits the parameters." in text
    assert "5 layers factorized" in text
    quiet = run("compress", path, "--rank", "4", "--force", "--quiet")
    assert (quiet.stderr, quiet.returncode) == (b"", 0)
    assert b"layers factorized" in quiet.stdout


def test_plans_are_saved_and_followed(tmp_path: Path) -> None:
    path, plan = nested(tmp_path), tmp_path / "plan.json"
    assert run("compress", path, "--rank", "4", "--dry-run", "--save-plan", plan).returncode == 0
    assert json.loads(plan.read_text())["source"]["path"] == str(path)
    assert run("compress", path, "--plan", plan, "-o", tmp_path / "a.pt").returncode == 0
    assert run("compress", path, "--rank", "4", "-o", tmp_path / "b.pt").returncode == 0
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    plan.write_text("{}")
    assert "is not a plan" in error_of(run("compress", path, "--plan", plan, "--dry-run"), 1)


def test_failed_gates_exit_with_3_after_writing(tmp_path: Path) -> None:
    path = nested(tmp_path)
    done = run("compress", path, "--ratio", "2", "--min-ratio", "5", "--max-error", "0.01", "--quiet")
    assert done.returncode == 3
    ratio, error = done.stderr.decode().splitlines()
    assert "`--min-ratio` asks for 5" in ratio
    assert "`--max-error` allows 0.01" in error
    assert (tmp_path / "nested.lrzip.ckpt").exists()
    passed = run("compress", path, "--ratio", "2", "--min-ratio", "1.5", "--max-error", "0.99", "--quiet", "--force")
    assert (passed.returncode, passed.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--energy", "0"], "above 0 and at most 1, got 0"),
        (["--energy", "1.5"], "got 1.5"),
        (["--energy", "nan"], "got nan"),
        (["--ratio", "0.5"], "got 0.5"),
        (["--rank", "0"], "got 0"),
        (["--rank", "two"], "--rank"),
        (["--energy", "0.9", "--ratio", "2"], "got `--energy` and `--ratio`"),
        ([], "got none"),
        (["--rank", "2", "--layer", "fc1"], "GLOB=RULE"),
        (["--rank", "2", "--layer", "fc1=size:3"], "Unknown rule"),
        (["--rank", "2", "--bogus"], "--bogus"),
        (["--rank", "2", "--device", "cuda:99"], "cannot be used"),
        (["--rank", "2", "--decomposition", "svdd"], "must be one of svd, tucker, "),
        (["--rank", "2", "--decomposition", "tucker", "--objective", "sensitivity"], "measures ranks of the SVD"),
        (["--plan", "plan.json", "--decomposition", "tucker"], "`--plan` decides on every layer"),
    ],
)
def test_wrong_usage_exits_with_2(options: list[str], message: str, tmp_path: Path) -> None:
    path = nested(tmp_path)
    assert message in error_of(run("compress", path, *options), 2)
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_names_the_decomposition_of_each_layer(tmp_path: Path) -> None:
    path, plan = nested(tmp_path), tmp_path / "plan.json"
    options = ("--rank", "4", "--decomposition", "tucker", "--only", "conv2", "--only", "fc1")
    done = run("compress", path, *options, "--save-plan", plan, "-o", tmp_path / "a.ckpt", "--json")
    document = json.loads(done.stdout)
    jsonschema.validate(document, COMPRESS)
    rows = {row["name"]: (row["decomposition"], row["ranks"]) for row in document["layers"]}
    assert rows == {"conv2": ("tucker", [4, 4]), "fc1": ("svd", [4])}
    run("compress", path, "--plan", plan, "-o", tmp_path / "b.ckpt")
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()
    text = run("compress", path, *options, "--dry-run").stdout.decode()
    assert "4, 4" in text
    dense = run("export", tmp_path / "a.ckpt", "--to", "dense", "-o", tmp_path / "dense.pt")
    assert "2 layers merged" in dense.stdout.decode()


def test_an_architecture_determines_the_kinds_of_layers(tmp_path: Path) -> None:
    (tmp_path / "nets_of_compress.py").write_text(
        "print('chatty')\nfrom torch import nn\n"
        "def make(width):\n"
        "    return nn.Sequential(nn.ConvTranspose2d(width, width, 4), nn.Conv2d(width, 48, 3, groups=2))\n"
    )
    model = nn.Sequential(nn.ConvTranspose2d(32, 32, 4), nn.Conv2d(32, 48, 3, groups=2))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    options = ["--ratio", "3", "--model", "nets_of_compress:make", "--model-arg", "width=32", "--json"]
    done = run("compress", "a.pt", *options, cwd=tmp_path)
    kinds = {row["name"]: (row["kind"], row["shape"]) for row in json.loads(done.stdout)["layers"]}
    assert kinds == {"0": ("conv_transpose2d", [32, 32, 4, 4]), "1": ("conv2d", [48, 16, 3, 3])}
    loaded = lrzip.load_into(model, tmp_path / "a.lrzip.pt")
    assert all(isinstance(loaded.get_submodule(name), nn.Sequential) for name in ("0", "1"))
    document = json.loads(run("analyze", "a.pt", *options[2:], cwd=tmp_path).stdout)
    assert [row["matrix"] for row in document["layers"]] == [[32, 512], [24, 144]]
    assert "--model-arg" in error_of(run("compress", "a.pt", "--rank", "2", "--model-arg", "a=1", cwd=tmp_path), 2)
    error = error_of(run("compress", "a.pt", "--rank", "2", "--model", "nets_of_compress:make", cwd=tmp_path), 1)
    assert "`nets_of_compress:make` could not be built: TypeError" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--skip", "conv9"], "`--skip conv9` matches no layer"),
        (["--only", "bn1"], "`bn1` cannot be factorized: a vector"),
        (["-o", "nested.ckpt"], "is the input"),
        (["-o", "missing/a.pt"], "does not exist"),
        (["--key", "weights"], "no entry `weights` of tensors. It has: epoch, state_dict"),
    ],
)
def test_failures_exit_with_1(options: list[str], message: str, tmp_path: Path) -> None:
    path = nested(tmp_path)
    assert message in error_of(run("compress", "nested.ckpt", "--rank", "4", *options, cwd=tmp_path), 1)
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_checkpoints_exit_with_1(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert "does not exist" in error_of(run("compress", path, "--rank", "4"), 1)
    path.write_bytes(b"")
    assert "is empty" in error_of(run("compress", path, "--rank", "4"), 1)
    assert "standard input` is empty" in error_of(run("compress", "--rank", "4"), 1)
    torch.save({"bn.weight": torch.rand(3)}, path)
    assert "no layer that can be factorized" in error_of(run("compress", path, "--rank", "4"), 1)
    (tmp_path / "folder").mkdir()
    assert "holds no safetensors weights" in error_of(run("compress", tmp_path / "folder", "--rank", "4"), 1)


def test_a_folder_cannot_go_to_standard_output(tmp_path: Path) -> None:
    assert "cannot go to standard output" in error_of(run("compress", sharded(tmp_path), "--rank", "4", "-o", "-"), 1)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    for path in (nested(tmp_path), safetensors(tmp_path)):
        before = sorted(tmp_path.iterdir())
        limited = f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); import sys; sys.argv = ['lrzip', 'compress', {str(path)!r}, '--ratio', '2']; from lrzip.cli.main import main; main()"  # noqa: E501
        done = subprocess.run([sys.executable, "-c", limited], capture_output=True, check=False, timeout=120)
        assert "Could not write" in error_of(done, 1)
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "arguments", [["analyze"], ["compress", "--ratio", "2"], ["compress", "--ratio", "2", "--json"]]
)
def test_a_full_standard_output_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    path = nested(tmp_path)
    for options in ([], ["-o", "-"])[: len(arguments) - 1 or 1]:
        command = spawn(*arguments, path, *options)
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, timeout=120)
        assert done.returncode == 1
        assert done.stderr.count(b"Could not read or write") == 1
        assert b"Traceback" not in done.stderr
        path.with_name("nested.lrzip.ckpt").unlink(missing_ok=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing(number: signal.Signals, code: int, tmp_path: Path) -> None:
    state = {f"fc{index}.weight": torch.rand(1024, 1024) for index in range(60)}
    torch.save(state, tmp_path / "a.pt")
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits deafness
    command = spawn("compress", tmp_path / "a.pt", "--rank", "200", "--svd", "exact")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not list(tmp_path.glob(".lrzip-*")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        stderr = process.communicate(timeout=60)[1]
    signal.signal(signal.SIGINT, heard)
    assert process.returncode == code
    assert b"Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_binary_result_never_goes_to_a_terminal(tmp_path: Path) -> None:
    path = nested(tmp_path)
    leader, follower = pty.openpty()
    command = spawn("compress", path, "--rank", "4", "-o", "-")
    done = subprocess.run(command, stdout=follower, stderr=subprocess.PIPE, check=False, timeout=120)
    os.close(follower)
    os.close(leader)
    assert done.returncode == 2
    assert b"standard output is a terminal" in done.stderr


def test_a_terminal_on_stdin_and_no_model_is_a_usage_error() -> None:
    leader, follower = pty.openpty()
    done = subprocess.run(spawn("analyze"), stdin=follower, capture_output=True, check=False, timeout=120)
    os.close(follower)
    os.close(leader)
    assert "standard input is a terminal" in error_of(done, 2)


def test_no_progress_bar_is_drawn_without_a_terminal(tmp_path: Path) -> None:
    command = spawn("compress", nested(tmp_path), "--rank", "4")
    environment = os.environ | {"FORCE_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=120)
    assert done.stderr == b""


def test_a_budget_in_json_and_in_words(tmp_path: Path) -> None:
    path = nested(tmp_path)
    document = json.loads(run("compress", path, "--budget", "params=50%", "--json", "--dry-run").stdout)
    jsonschema.validate(document, COMPRESS)
    totals = document["totals"]
    assert totals["budget"]["used"] == totals["parameters_after"] <= totals["budget"]["limit"]
    assert all("predicted_loss" in row for row in document["layers"])
    text = run("compress", path, "--budget", "params=50%", "--objective", "operator-norm").stdout.decode()
    assert "predicted loss (operator-norm)" in text
    assert "the least possible" in text


def test_a_curve_of_plans(tmp_path: Path) -> None:
    path, picture = nested(tmp_path), tmp_path / "curve.png"
    options = ("--budget", "params=40%,60%,80%", "--dry-run", "--skip", "conv1")
    done = run("compress", path, *options, "--json", "--plot", picture)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, CURVE)
    limits = [point["totals"]["budget"]["limit"] for point in document["points"]]
    assert limits == sorted(limits)
    assert document["input"] == document["points"][0]["input"] == str(path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(run("compress", path, *options).stdout.decode().split("\n\n")[0].splitlines()) == 4
    piped = json.loads(run("compress", *options, "--json", stdin=path.read_bytes()).stdout)
    assert piped["input"] == "-"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "params=40%,60%"], "names several budgets, for a curve of plans: add `--dry-run`"),
        (["--budget", "params=40%,60%", "--dry-run", "--energy", "0.9"], "goes without `--energy`"),
        (["--budget", "params=40%,60%", "--dry-run", "--save-plan", "a.json"], "goes without `--save-plan`"),
        (["--budget", "params=40%,60%", "--dry-run", "--plot", "a.gif"], "`--plot` takes a .png"),
        (["--budget", "params=40%,nbytes=60%", "--dry-run"], "mixes units"),
        (["--budget", "params=40%", "--plot", "a.png"], "`--plot` goes with `--max-drop D`, or with several budgets"),
        (["--rank-rule", "size:3"], "Unknown rule `size:3`"),
    ],
)
def test_wrong_budgets_exit_with_2(options: list[str], message: str, tmp_path: Path) -> None:
    path = nested(tmp_path)
    assert message in error_of(run("compress", path, *options), 2)
    assert list(tmp_path.iterdir()) == [path]
