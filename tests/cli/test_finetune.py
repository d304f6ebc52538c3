import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import torch

from tests.support.schemas import FINETUNE
from tests.support.shell import error_of, run, spawn
from tests.support.tasks import classes, write_compressed, write_data

FAST = ("--model", "tests.support.tasks:Classifier", "--data", "data.npz", "--batch-size", "32", "--lr", "0.01")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path / "data.npz", *classes())
    write_compressed(tmp_path)
    (tmp_path / "my_code.py").write_text(
        "import os, signal, threading\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "from tests.support.tasks import classes\n"
        "def loaders():\n"
        "    x, y = classes()\n"
        "    print('made')\n"
        "    return DataLoader(TensorDataset(x[:300], y[:300])), TensorDataset(x[300:], y[300:])\n"
        "def loss(output, target):\n"
        "    return torch.nn.functional.multi_margin_loss(output, target)\n"
        "def share_wrong(output, target):\n"
        "    return (output.argmax(1) != target).float().mean()\n"
        "share_wrong.higher_is_better = False\n"
        "def broken(output, target):\n"
        "    return output.no_such_thing\n"
        "def number(output, target):\n"
        "    return 1.0\n"
        "def hanging(output, target):\n"
        "    if os.environ.get('HANG') and Path('state.pt').exists():\n"
        "        Path('hangs').touch()\n"
        "        threading.Event().wait()\n"
        "    return torch.nn.functional.cross_entropy(output, target)\n"
        "steps = 0\n"
        "def interrupting(output, target):\n"
        "    global steps\n"
        "    steps += 1\n"
        "    if steps == 13:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return torch.nn.functional.cross_entropy(output, target)\n"
        "def each(output, target):\n"
        "    return torch.nn.functional.cross_entropy(output, target, reduction='none')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_code", raising=False)  # that of another test
    return tmp_path


def test_json_is_one_document(folder: Path) -> None:
    done = run("finetune", "small.pt", *FAST, "--epochs", "2", "--json", "--log", "log.jsonl", cwd=folder)
    assert done.stderr == b""
    document = json.loads(done.stdout)
    jsonschema.validate(document, FINETUNE)
    assert document["output"] == "small.tuned.pt"
    assert document["after"]["accuracy"] > document["before"]["accuracy"]
    assert len((folder / "log.jsonl").read_text().splitlines()) == 3


def test_the_table_lists_epochs_and_the_change_of_the_metric(folder: Path) -> None:
    done = run("finetune", "small.pt", *FAST, "--epochs", "1", "-o", "out.pt", "--metric", "accuracy", cwd=folder)
    text = done.stdout.decode()
    assert "on 40 validation samples, after epoch 1." in text
    assert "Wrote out.pt after 11 steps in" in text
    assert done.stderr == b""
    quiet = run("finetune", "small.pt", *FAST, "--epochs", "1", "-o", "q.pt", "--quiet", cwd=folder)
    assert quiet.stderr == b""
    assert b"Wrote q.pt" in quiet.stdout


def test_code_of_the_user_gives_data_loss_and_metric(folder: Path) -> None:
    options = ("--loss", "my_code:loss", "--metric", "my_code:share_wrong", "--epochs", "3", "--json")
    done = run(
        "finetune",
        "small.pt",
        "--model",
        "tests.support.tasks:Classifier",
        "--data",
        "my_code:loaders",
        *options,
        cwd=folder,
    )
    document = json.loads(done.stdout)
    assert (document["train_examples"], document["val_examples"]) == (300, 100)
    assert document["after"]["my_code:share_wrong"] < document["before"]["my_code:share_wrong"]


def test_checkpoints_are_read_from_and_written_to_pipes(folder: Path) -> None:
    done = run("finetune", *FAST, "--epochs", "1", stdin=(folder / "small.pt").read_bytes(), cwd=folder)
    assert done.stdout[:2] == b"PK"
    (folder / "piped.pt").write_bytes(done.stdout)
    assert "state_dict" in torch.load(folder / "piped.pt")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--data", "data.npz"), 2, "finetune needs `--model PKG.MOD:NET`"),
        (("--model", "tests.support.tasks:Classifier"), 2, "Missing option '--data'"),
        ((*FAST, "--optimizer", "lion"), 2, "`--optimizer` takes adamw, adam, sgd, got `lion`"),
        ((*FAST, "--lr", "-1"), 2, "`--lr` takes a number above 0"),
        ((*FAST, "--amp", "fp16"), 1, "`--amp fp16` needs a GPU"),
        ((*FAST, "--augment", "crop"), 1, "`--augment` is for images, but inputs have shape (12,)"),
        ((*FAST, "--mean", "1,2"), 1, "`--mean` and `--std` take 1 or 12 numbers"),
        ((*FAST, "--temperature", "0"), 2, "`--temperature` takes a number above 0"),
        ((*FAST, "--loss", "my_code:broken"), 1, "Step 1, on inputs float32 (12,): AttributeError: "),
        ((*FAST, "--loss", "my_code:number"), 1, "The loss, float, is no scalar tensor that depends on weights"),
        ((*FAST, "--loss", "my_code:each"), 1, "The loss, of shape (32,), is no scalar tensor"),
        ((*FAST, "--metric", "my_code:number"), 2, "Give `my_code:number:max` or `my_code:number:min`"),
        ((*FAST, "--metric", "my_code:broken:max"), 1, "`--metric my_code:broken:max` failed: AttributeError: "),
        ((*FAST, "--loss", "my_code:lost"), 1, "`my_code` has no `lost`"),
        (
            ("--model", "tests.support.tasks:Classifier", "--data", "missing.npz"),
            1,
            "`--data missing.npz` does not exist",
        ),
        (("--model", "tests.support.tasks:Classifier", "--data", "data.npz:test"), 1, "there is no part `test`"),
    ],
)
def test_failures_are_one_line(options: tuple[str, ...], code: int, message: str, folder: Path) -> None:
    assert message in error_of(run("finetune", "small.pt", *options, cwd=folder), code)
    assert not (folder / "small.tuned.pt").exists()


def test_a_loss_that_explodes_exits_with_3_and_writes(folder: Path) -> None:
    options = ("--optimizer", "sgd", "--lr", "1e30", "--clip", "0", "--quiet")
    done = run("finetune", "small.pt", *FAST, *options, cwd=folder)
    assert done.returncode == 3
    assert b"lrzip: The loss or its gradient was not finite in step" in done.stderr
    assert (folder / "small.tuned.pt").exists()


def test_a_killed_process_is_resumed_to_the_same_bytes(folder: Path) -> None:
    """The process hangs in its second epoch, after the state of the first is saved, until it is killed."""
    options = (*FAST, "--epochs", "3", "--threads", "1", "--loss", "my_code:hanging")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(folder)]), "HANG": "1"}
    command = spawn("finetune", "small.pt", *options, "--resume", "state.pt", "-o", "out.pt")
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE) as process:
        while process.poll() is None and not (folder / "hangs").exists():
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert torch.load(folder / "state.pt")["step"] == 11  # an epoch of 360 samples in batches of 32
    assert not (folder / "out.pt").exists()
    for output in (("--resume", "state.pt", "-o", "out.pt"), ("-o", "uninterrupted.pt")):
        done = run("finetune", "small.pt", *options, *output, cwd=folder)
        assert done.returncode == 0, done.stderr
    assert (folder / "out.pt").read_bytes() == (folder / "uninterrupted.pt").read_bytes()


def test_ctrl_c_writes_the_best_so_far_and_exits_with_130(folder: Path) -> None:
    options = ("--epochs", "100000", "--loss", "my_code:interrupting", "-o", "out.pt")
    done = run("finetune", "small.pt", *FAST, *options, cwd=folder)
    assert done.returncode == 130, done.stderr
    assert b"lrzip: Interrupted after step 13; the best state so far, of epoch" in done.stderr
    assert b"Traceback" not in done.stderr
    assert torch.load(folder / "out.pt")["state_dict"].keys() == torch.load(folder / "small.pt")["state_dict"].keys()
