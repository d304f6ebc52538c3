"""Finetune: train a compressed checkpoint to recover what it lost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from torch import nn

from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.plan import SCHEMA, Entry
from lrzip.core.structure import join
from lrzip.core.version import __version__
from lrzip.formats.files.atomic import check_output
from lrzip.formats.open import open_checkpoint
from lrzip.formats.outputs import check_program, not_carried, output_format
from lrzip.formats.protocols import Checkpoint, Guarded
from lrzip.formats.rewrite import write_state
from lrzip.training.cache import network_digest
from lrzip.training.data.augmentation import Preparation
from lrzip.training.data.read import Data, read_data
from lrzip.training.loop import Execution, train
from lrzip.training.losses import Distillation, TrainingLoss, make_loss
from lrzip.training.metrics import Scorer
from lrzip.training.outcomes import Epoch, Outcome, StepCallback
from lrzip.training.settings import Settings
from lrzip.training.student import load_student
from lrzip.training.tasks import Task, task_of


@dataclass(frozen=True)
class FinetuneReport:
    """What a fine-tuning did.

    Attributes:
        source: What was read.
        output: What was written.
        task: What was learned.
        examples: Numbers of examples of the training and the validation set.
        outcome: Of the training; its `state` is what was written.
        options: What else decided the result: data, loss, metrics, teacher.
        dropped: Entries of the source that were not carried over, each with its reason.
        version: Of lrzip.
    """

    source: Path
    output: Path
    task: Task
    examples: tuple[int, int]
    outcome: Outcome
    options: Mapping[str, Any]
    dropped: Sequence[tuple[str, str]]
    version: str

    @property
    def before(self) -> Mapping[str, float]:
        """Metrics of the validation set before training; empty without one."""
        return self.outcome.epochs[0].scores

    @property
    def after(self) -> Mapping[str, float]:
        """Metrics of the validation set of what was written."""
        return self.outcome.best.scores

    @property
    def trouble(self) -> str | None:
        """What stopped the training before its end, unless that was asked for, in one line for people."""
        best = f"what was written is the best state so far, of epoch {self.outcome.best.number}"
        if self.outcome.stopped == "interrupted":
            return f"Interrupted after step {self.outcome.steps}; {best}."
        if self.outcome.stopped == "not finite":
            return f"The loss or its gradient was not finite in step {self.outcome.steps + 1}; {best}. Lower `--lr`."
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        outcome, settings = self.outcome, self.outcome.settings
        return {
            "schema": SCHEMA,
            "lrzip": self.version,
            "input": str(self.source),
            "output": str(self.output),
            "task": self.task.kind,
            "train_examples": self.examples[0],
            "val_examples": self.examples[1],
            "before": _scores(self.before),
            "after": _scores(self.after),
            "best_epoch": outcome.best.number,
            "steps": outcome.steps,
            "seconds": round(outcome.seconds, 3),
            "stopped": outcome.stopped,
            "settings": {**asdict(settings), "lr": settings.rate, "weight_decay": settings.decay},
            "options": dict(self.options),
            "epochs": [epoch.to_dict() for epoch in outcome.epochs],
            "dropped": [{"name": name, "reason": reason} for name, reason in self.dropped],
        }


def finetune(
    path: str | Path,
    output: str | Path | None = None,
    *,
    model: nn.Module | None = None,
    data: str | Data,
    val: str | None = None,
    val_fraction: float = 0.1,
    preparation: Preparation | None = None,
    image_size: int | None = None,
    loss: str = "auto",
    label_smoothing: float = 0.0,
    metrics: Sequence[str] = (),
    teacher: str | Path | None = None,
    distillation: Distillation | None = None,
    settings: Settings | None = None,
    device: str = "cpu",
    workers: int = 0,
    resume: str | Path | None = None,
    log: str | Path | None = None,
    key: str | None = None,
    trust: bool = False,
    force: bool = False,
    watch: StepCallback | None = None,
) -> FinetuneReport:
    """Train a checkpoint and write its best state by the validation set, under the same names and in the same format.

    Test data is never looked at. Under torchrun all processes train together, and the first writes.

    Args:
        path: A checkpoint, factorized or dense.
        output: Where to write; by default `small.tuned.pt` beside `small.pt`.
        model: An instance of the dense architecture, changed in place. A program or a module, which a trusted file
            holds, can do without: it brings its own, and so must the teacher then.
        data: As `lrzip.data.read_data` takes it, or its result.
        val: Where the validation set is, where it is not in `data`.
        val_fraction: Share of the training set that becomes the validation set where there is no other.
        preparation: What becomes of inputs before the network gets them.
        image_size: Side to which images of folders are resized.
        loss: `auto`, `cross_entropy`, `mse`, `kl` or `pkg.mod:fn`.
        label_smoothing: Of cross entropy.
        metrics: `accuracy`, `top5`, `r2`, `rmse`, `mae` or `pkg.mod:fn`; the first selects the best state.
        teacher: The dense checkpoint, whose outputs are learned too; without labels, alone.
        distillation: How much it counts.
        settings: Optimizer, schedule, length and the like.
        device: Where to compute.
        workers: Processes that prepare batches.
        resume: File that the state of the training is kept in. If it exists, training goes on from there.
        log: File that gets a line of JSON for each epoch.
        key: Which entry of a nested file holds the weights.
        trust: Allow what would run code from the files.
        force: Overwrite an existing output.
        watch: Called after each step.

    Raises:
        LrzipError: It could not be done; nothing is written.
    """
    source = Path(path)
    destination = Path(output) if output is not None else default_output(source)
    check_output(destination, source, force=force)
    for kept in (resume, log):
        if kept is not None and not Path(kept).absolute().parent.is_dir():
            raise LrzipError(f"The folder of `{kept}` does not exist. Create it first.")
    begun, taught = settings or Settings(), distillation or Distillation()
    if teacher is None and distillation is not None:
        raise UsageError("`--temperature`, `--teacher-share` and `--match-layers` say how to learn from a `--teacher`.")
    _check_format(source, destination, key=key, trust=trust)
    study = load_student(source, model, Path(teacher) if teacher is not None else None, key=key, trust=trust)
    student = study.student
    if taught.layers and not study.modules:
        raise UsageError(f"`--match-layers` compares outputs of factorized layers, and `{source}` has none to look at.")
    found = (
        data
        if isinstance(data, Data)
        else read_data(
            data, val=val, val_fraction=val_fraction, preparation=preparation, image_size=image_size, seed=begun.seed
        )
    )
    task = task_of(student, found, loss)
    chosen = replace(begun, batch_size=begun.batch(len(found.train)))
    scorer = Scorer(metrics, task)
    function = make_loss(loss, task, label_smoothing=label_smoothing)
    options = {
        "data": found.train.name,
        "loss": loss,
        "label_smoothing": label_smoothing,
        "metrics": list(scorer.metrics),
        "teacher": str(teacher) if teacher is not None else None,
        **(asdict(taught) if teacher is not None else {}),
        "preparation": {name: list(values) for name, values in vars(preparation or Preparation()).items()},
    }
    examples = len(found.train), len(found.val) if found.val is not None else 0
    identity = {**options, "checkpoint": network_digest(student), "examples": list(examples)}
    outcome = train(
        student,
        found,
        TrainingLoss(task, function, teacher=study.teacher, distillation=taught, modules=study.modules),
        scorer,
        chosen,
        Execution(
            device=device,
            workers=workers,
            resume=Path(resume) if resume is not None else None,
            identity=identity,
            watch=watch,
            log=_Log(Path(log)) if log is not None else None,
        ),
    )
    dropped = _write(source, destination, outcome, study.names, key=key, trust=trust)
    return FinetuneReport(source, destination, task, examples, outcome, options, tuple(dropped.items()), __version__)


def default_output(source: Path) -> Path:
    """Return `small.tuned.pt` for `small.pt`, and `folder.tuned` for a folder."""
    path = source if source.name else source.absolute()
    return path.with_name(f"{path.name}.tuned" if path.is_dir() else f"{path.stem}.tuned{path.suffix}")


def _check_format(source: Path, destination: Path, *, key: str | None, trust: bool) -> None:
    """Refuse an output that could not be written, before any work is done."""
    with open_checkpoint(source, key=key, trust=trust) as checkpoint:
        format_ = output_format(destination, checkpoint.format)
        check_program(checkpoint, format_, destination, force_factorize=False)
        if isinstance(checkpoint, Guarded):
            checkpoint.refuse_replacing(format_)


def _write(
    source: Path, destination: Path, outcome: Outcome, names: Mapping[str, str], *, key: str | None, trust: bool
) -> Mapping[str, str]:
    """Write the source with the tensors of a state in place of its own; return what was left out, with the reasons."""
    with open_checkpoint(source, key=key, trust=trust) as checkpoint:
        format_ = output_format(destination, checkpoint.format)
        dropped = not_carried(format_, checkpoint, optimizer=True)
        if not outcome.main:
            return dropped
        layout = _layout(checkpoint)
        write_state(destination, checkpoint, layout, names, outcome.state, format_=format_, drop=list(dropped))
    return dropped


def _layout(checkpoint: Checkpoint) -> tuple[Entry, ...]:
    kinds = checkpoint.dense_layers or {}
    stages = {join(module, f"{index}.weight"): layer.kind for module, layer in kinds.items() for index in (0, 1)}
    return tuple(Entry(spec, name, copied=True, kind=stages.get(name)) for name, spec in checkpoint.tensors().items())


def _scores(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if isfinite(value) else None for name, value in scores.items()}


class _Log:
    """Appends epochs to a file, one JSON document a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, epoch: Epoch) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(epoch.to_dict(), allow_nan=False) + "\n")
