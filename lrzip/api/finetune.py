"""Fine-tune a compressed checkpoint to recover its accuracy."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Unpack

from lrzip.api.keywords import FINETUNE_GROUPS, FinetuneOptions, TrainingKeywords
from lrzip.core.declarations import Options, documented
from lrzip.core.errors import LrzipError, UsageError
from lrzip.core.layout import Entry
from lrzip.core.options import Key, Machine, Network, Opening
from lrzip.core.output_options import Overwriting
from lrzip.core.plan import SCHEMA
from lrzip.core.structure import join
from lrzip.core.training_options import Batching, DataOptions, FinetuneFiles, FinetuneTeacher, Smoothing, TrainedModules
from lrzip.core.version import __version__
from lrzip.formats.files.atomic import check_output
from lrzip.formats.open import open_checkpoint
from lrzip.formats.outputs import check_program, not_carried, output_format
from lrzip.formats.protocols import Checkpoint, Guarded
from lrzip.formats.rewrite import write_state
from lrzip.networks.inputs import input_names
from lrzip.networks.matching import Match
from lrzip.training.cache import network_digest
from lrzip.training.data.augmentation import Preparation
from lrzip.training.data.read import Data, read_data
from lrzip.training.freezing import freeze
from lrzip.training.loop import Execution, train
from lrzip.training.losses import Distillation, TrainingLoss, make_loss
from lrzip.training.metrics import Scorer
from lrzip.training.outcomes import Epoch, Outcome
from lrzip.training.settings import Settings
from lrzip.training.student import StudentTeacher, load_student
from lrzip.training.tasks import Task, task_of
from lrzip.training.tokens import with_alignment


@dataclass(frozen=True)
class FinetuneReport:
    """The result of a fine-tuning.

    Attributes:
        source: File or folder that was read.
        output: File or folder that was written.
        task: The task of the network.
        examples: Numbers of samples of the training and the validation set.
        outcome: The training; its `state` was written.
        options: Other options that determine the result: data, loss, metrics, teacher.
        dropped: Entries of the source that were left out, with reasons.
        version: Version of lrzip.
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
        """Metrics on the validation set before training; empty without a validation set."""
        return self.outcome.epochs[0].scores

    @property
    def after(self) -> Mapping[str, float]:
        """Metrics on the validation set of the state that was written."""
        return self.outcome.best.scores

    @property
    def trouble(self) -> str | None:
        """Why the training ended early, in one line; None if it did not, or if it was requested."""
        best = f"the best state so far, of epoch {self.outcome.best.number}, was written"
        if self.outcome.stopped == "interrupted":
            return f"Interrupted after step {self.outcome.steps}; {best}."
        if self.outcome.stopped == "not finite":
            return f"The loss or its gradient was not finite in step {self.outcome.steps + 1}; {best}. Lower `lr`."
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON document."""
        outcome, settings = self.outcome, self.outcome.settings
        return {
            "schema": SCHEMA,
            "lrzip": self.version,
            "input": str(self.source),
            "output": str(self.output),
            "task": self.task.kind,
            "task_remark": self.task.remark,
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


@documented(FinetuneOptions, *FINETUNE_GROUPS)
def finetune(
    path: str | Path, output: str | Path | None = None, *, data: str | Data, **options: Unpack[FinetuneOptions]
) -> FinetuneReport:
    """Train a checkpoint, and write its best state on the validation set, with the same names and format.

    Test data is not used. Under torchrun all processes train together, and the first one writes.

    Args:
        path: A checkpoint, factorized or dense.
        output: File or folder to write; by default `small.tuned.pt` beside `small.pt`.
        data: Training data in a form that `lrzip.training.data.read.read_data` accepts, or its result.
        **options: Keywords as declared in `lrzip.core.training_options`. `model` is an instance of the dense
            architecture, which is changed in place. Programs and modules in trusted files contain their own network,
            and their teacher must do so, too.

    Raises:
        LrzipError: The training failed; nothing is written.
    """
    given = Options("finetune", FinetuneOptions, options)
    source = Path(path)
    destination = Path(output) if output is not None else default_output(source)
    _check(source, destination, given)
    teacher = given[FinetuneTeacher].teacher
    networks = load_student(source, given[Network].model, Path(teacher) if teacher else None, **vars(given[Opening]))
    freeze(networks.student, **vars(given[TrainedModules]))
    found = (data if isinstance(data, Data) else _read(data, given)).bound(input_names(networks.student))
    name = given[Batching].loss
    task = with_alignment(networks.student, found.train, task_of(networks.student, found, name), name)
    scorer, loss = Scorer(given[DataOptions].metrics, task), _loss(source, networks, task, given)
    record = _record(found, scorer, given)
    counts = len(found.train), len(found.val) if found.val is not None else 0
    identity = {**record, "checkpoint": network_digest(networks.student), "examples": list(counts)}
    settings = _settings(given)
    settings = replace(settings, batch_size=settings.batch(len(found.train)))
    outcome = train(networks.student, found, loss, scorer, settings, _execution(identity, given))
    dropped = _write(source, destination, outcome, networks.matched, **vars(given[Opening]))
    return FinetuneReport(source, destination, task, counts, outcome, record, tuple(dropped.items()), __version__)


def _check(source: Path, destination: Path, given: Options) -> None:
    """Refuse unwritable files, and options of distillation without a teacher, before any work is done."""
    check_output(destination, source, force=given[Overwriting].force)
    for file in vars(given[FinetuneFiles]).values():
        if file is not None and not Path(file).absolute().parent.is_dir():
            raise LrzipError(f"The folder of `{file}` does not exist. Create it first.")
    if given[FinetuneTeacher].teacher is None and given[TrainingKeywords].distillation is not None:
        raise UsageError("`temperature`, `teacher_share` and `match_layers` say how to learn from a `teacher`.")
    _check_format(source, destination, **vars(given[Opening]))


def _settings(given: Options) -> Settings:
    return given[TrainingKeywords].settings or Settings()


def _read(data: str, given: Options) -> Data:
    options = given[DataOptions]
    return read_data(
        data,
        val=options.val,
        val_fraction=options.val_fraction,
        preparation=given[TrainingKeywords].preparation,
        image_size=options.image_size,
        seed=_settings(given).seed,
    )


def _loss(source: Path, networks: StudentTeacher, task: Task, given: Options) -> TrainingLoss:
    """Return the loss of labels, and of the teacher's outputs if there is a teacher."""
    distillation = given[TrainingKeywords].distillation or Distillation()
    if distillation.layers and not networks.modules:
        raise UsageError(f"`match_layers` compares outputs of factorized layers, and `{source}` has none.")
    function = make_loss(given[Batching].loss, task, label_smoothing=given[Smoothing].label_smoothing)
    return TrainingLoss(task, function, teacher=networks.teacher, distillation=distillation, modules=networks.modules)


def _record(found: Data, scorer: Scorer, given: Options) -> dict[str, Any]:
    """Return the options besides the settings that determine the result, for reports and for resuming."""
    keywords, teacher = given[TrainingKeywords], given[FinetuneTeacher].teacher
    distillation = asdict(keywords.distillation or Distillation()) if teacher is not None else {}
    preparation = keywords.preparation or Preparation()
    return {
        "data": found.train.name,
        "loss": given[Batching].loss,
        "label_smoothing": given[Smoothing].label_smoothing,
        "metrics": list(scorer.metrics),
        **{name: list(patterns) for name, patterns in vars(given[TrainedModules]).items()},
        "teacher": str(teacher) if teacher is not None else None,
        **distillation,
        "preparation": {name: list(values) for name, values in vars(preparation).items()},
    }


def _execution(identity: Mapping[str, Any], given: Options) -> Execution:
    files = given[FinetuneFiles]
    return Execution(
        device=given[Machine].device,
        workers=given[Batching].workers,
        resume=Path(files.resume) if files.resume is not None else None,
        identity=identity,
        watch=given[TrainingKeywords].watch,
        log=_Log(Path(files.log)) if files.log is not None else None,
    )


def default_output(source: Path) -> Path:
    """Return `small.tuned.pt` for `small.pt`, and `folder.tuned` for a folder."""
    path = source if source.name else source.absolute()
    return path.with_name(f"{path.name}.tuned" if path.is_dir() else f"{path.stem}.tuned{path.suffix}")


def _check_format(source: Path, destination: Path, *, key: Key, trust: bool) -> None:
    """Refuse an output that could not be written, before any work is done."""
    with open_checkpoint(source, key=key, trust=trust) as checkpoint:
        format_ = output_format(destination, checkpoint.format)
        check_program(checkpoint, format_, destination, force_factorize=False)
        if isinstance(checkpoint, Guarded):
            checkpoint.refuse_replacing(format_)


def _write(
    source: Path, destination: Path, outcome: Outcome, matched: Match, *, key: Key, trust: bool
) -> Mapping[str, str]:
    """Write the source with the tensors of a state in place of its own; return the entries left out, with reasons."""
    with open_checkpoint(source, key=key, trust=trust) as checkpoint:
        format_ = output_format(destination, checkpoint.format)
        dropped = not_carried(format_, checkpoint, optimizer=True)
        if not outcome.main:
            return dropped
        layout = _layout(checkpoint)
        tensors = matched.stored(outcome.state)
        write_state(destination, checkpoint, layout, tensors, format_=format_, drop=list(dropped))
    return dropped


def _layout(checkpoint: Checkpoint) -> tuple[Entry, ...]:
    kinds = checkpoint.dense_layers or {}
    stages = {join(module, f"{index}.weight"): layer.kind for module, layer in kinds.items() for index in (0, 1)}
    return tuple(Entry(spec, name, copied=True, kind=stages.get(name)) for name, spec in checkpoint.tensors().items())


def _scores(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if isfinite(value) else None for name, value in scores.items()}


class _Log:
    """Append epochs to a file, one JSON document per line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, epoch: Epoch) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(epoch.to_dict(), allow_nan=False) + "\n")
