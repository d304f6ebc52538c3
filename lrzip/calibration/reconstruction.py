"""Label-free reconstruction: a short training of a factorized network to put out what the dense one does."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lrzip.core.chains import Factors, compose, relative_difference
from lrzip.core.layers import tensor_name
from lrzip.core.plan import Plan
from lrzip.networks.surgery import assemble
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Samples
from lrzip.training.forward import probe
from lrzip.training.loop import train
from lrzip.training.losses import TrainingLoss, make_loss
from lrzip.training.metrics import Scorer
from lrzip.training.settings import Settings
from lrzip.training.tasks import find_task

# Of 3e-4 to 3e-3, by images of CIFAR-10's training set that took no part: highest where the start is good already.
_RATE = 1e-3


@dataclass(frozen=True)
class Reconstructed:
    """What a training found.

    Attributes:
        factors: Of the layers of a plan, by their name.
        tensors: Others of the network that have new values, by name.
    """

    factors: Mapping[str, Factors]
    tensors: Mapping[str, Tensor]


def reconstruct(
    model: nn.Module,
    plan: Plan,
    factors: Mapping[str, Factors],
    tensors: Mapping[str, Tensor],
    examples: Samples,
    *,
    steps: int,
    seed: int,
) -> Reconstructed:
    """Train factors to give the network's own outputs on examples, whose labels are not looked at.

    All parameters are trained, with statistics of batch norms as they are: there may be few examples.

    Args:
        model: The dense network, in evaluation mode; it is not changed.
        plan: Of its layers.
        factors: Of each, to begin with.
        tensors: Others that are to have new values.
        examples: What to learn from; random changes of them are those of their preparation.
        steps: How long.
        seed: Of the order and of random changes.
    """
    student = assemble(copy.deepcopy(model), plan, factors, tensors)
    unlabelled = examples.unlabelled()
    task = find_task(unlabelled, probe(student, unlabelled))
    settings = Settings(steps=steps, lr=_RATE, freeze_batchnorm=True, seed=seed)
    settings = replace(settings, batch_size=settings.batch(len(unlabelled)))
    teacher = copy.deepcopy(model)
    objective = TrainingLoss(task, make_loss("auto", task), teacher=teacher)
    state = train(student, Data(unlabelled, None), objective, Scorer((), task), settings).state
    return _read_back(model, plan, factors, state)


def _read_back(
    model: nn.Module, plan: Plan, factors: Mapping[str, Factors], state: Mapping[str, Tensor]
) -> Reconstructed:
    dense, left = model.state_dict(), dict(state)
    found: dict[str, Factors] = {}
    for decision in plan.factorize:
        layer, old = decision.layer, factors[decision.layer.name]
        stages = [left.pop(name) for name in layer.stage_names(len(decision.stages))]
        weights = tuple(stage.to(like) for stage, like in zip(stages, old.weights, strict=True))
        weight = dense[tensor_name(layer.path, layer.kind, "weight")].float()
        error = relative_difference(weight, compose(weights, layer.kind).float())
        method = f"{old.method}, trained"
        # What was told of the factors before says nothing of these.
        found[layer.name] = replace(old, weights=weights, error=error, method=method, excess=None, output_error=None)
        if layer.bias:
            last = layer.stage_names(len(stages))[-1].removesuffix("weight") + "bias"
            left[tensor_name(layer.path, layer.kind, "bias")] = left.pop(last)
    return Reconstructed(found, {name: t for name, t in left.items() if not torch.equal(t, dense[name].cpu())})
