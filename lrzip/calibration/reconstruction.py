"""Label-free reconstruction: a short training of the factorized network with the dense one as its teacher."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from lrzip.calibration.sequential import Fitted
from lrzip.core.factors import Factors, GroupFactors, relative_difference
from lrzip.core.plan import Plan
from lrzip.core.structure import bias_name, join, tensor_names
from lrzip.networks.state import copy_of, tensors_of
from lrzip.networks.surgery import assemble
from lrzip.training.data.read import Data
from lrzip.training.data.samples import Samples
from lrzip.training.forward import probe
from lrzip.training.loop import train
from lrzip.training.losses import TrainingLoss, make_loss
from lrzip.training.metrics import Scorer
from lrzip.training.settings import Settings
from lrzip.training.tasks import find_task

# Chosen from 3e-4 to 3e-3 on held-out images of CIFAR-10's training set: best for initially accurate networks.
_RATE = 1e-3


def reconstruct(model: nn.Module, plan: Plan, start: Fitted, samples: Samples, *, steps: int, seed: int) -> Fitted:
    """Train a factorized network to reproduce the outputs of the dense one on calibration data. Labels are ignored.

    All parameters are trained; the statistics of batch norms are kept, since there may be few samples.

    Args:
        model: The dense network, in evaluation mode; it is not changed.
        plan: Decisions on its layers.
        start: Initial factors, and initial values of other tensors that differ from the dense network.
        samples: Calibration data, with the augmentation of its preparation.
        steps: Number of training steps.
        seed: Seed of the order and of the augmentation.
    """
    factors = {name: GroupFactors((each,)) for name, each in start.factors.items()}
    student = assemble(copy_of(model), plan, factors, start.tensors)
    unlabelled = samples.unlabelled()
    task = find_task(unlabelled, probe(student, unlabelled))
    settings = Settings(steps=steps, lr=_RATE, freeze_batchnorm=True, seed=seed)
    settings = replace(settings, batch_size=settings.batch(len(unlabelled)))
    teacher = copy_of(model)
    objective = TrainingLoss(task, make_loss("auto", task), teacher=teacher)
    state = train(student, Data(unlabelled, None), objective, Scorer((), task), settings).state
    return _read_back(model, plan, start.factors, state)


def _read_back(model: nn.Module, plan: Plan, factors: Mapping[str, Factors], state: Mapping[str, Tensor]) -> Fitted:
    """Return the factors and the other changed tensors in the state_dict of a trained network."""
    dense, left = tensors_of(model), dict(state)
    found: dict[str, Factors] = {}
    for decision in plan.factorize:
        layer, old = decision.layer, factors[decision.layer.name]
        names = [join(layer.path, name) for name in tensor_names(decision.structure)]
        weights = tuple(left.pop(name).to(like) for name, like in zip(names, old.weights, strict=True))
        trained = replace(old, weights=weights)
        weight = dense[layer.kind.tensor_name(layer.path, "weight")].float()
        error = relative_difference(weight, trained.dense(layer.stage).float())
        method = f"{old.method}, trained"
        # The bounds and errors of the initial factors do not hold for the trained ones.
        found[layer.name] = replace(trained, error=error, method=method, excess=None, output_error=None)
        if layer.bias:
            last = join(layer.path, bias_name(decision.structure))
            left[layer.kind.tensor_name(layer.path, "bias")] = left.pop(last)
    return Fitted(found, {name: t for name, t in left.items() if not torch.equal(t, dense[name].cpu())})
