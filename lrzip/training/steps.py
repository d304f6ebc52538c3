"""One optimization step: forward pass, loss, backward pass, clipping and update."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lrzip.core.errors import LrzipError, typed_line
from lrzip.networks.inputs import described
from lrzip.training.data.samples import Batch, seed_of
from lrzip.training.losses import TrainingLoss
from lrzip.training.settings import Settings
from lrzip.training.weights import Weights


@dataclass(frozen=True)
class Stepper:
    """Takes the steps of a training.

    Attributes:
        accelerator: Device and processes.
        model: The network, whose gradients are clipped.
        weights: The same network as it is called, and its optimizer.
        objective: The loss.
        settings: Seed and clipping.
        channels_last: Whether inputs are converted to torch's channels_last memory format.
    """

    accelerator: Accelerator
    model: nn.Module
    weights: Weights
    objective: TrainingLoss
    settings: Settings
    channels_last: bool

    def take(self, batch: Batch, step: int, rate: float) -> float | None:
        """Take a step and return its loss, averaged over all processes.

        Args:
            batch: Inputs and labels of this process.
            step: Number of steps before this one, from which the seed of dropout follows.
            rate: Learning rate.

        Returns:
            The loss, or None if it or its gradient is not finite; the weights are then left unchanged. In fp16, a
            gradient that is not finite only makes the gradient scaler skip the update.

        Raises:
            LrzipError: The batch does not fit the network, or the loss is not a differentiable scalar.
        """
        accelerator, optimizer = self.accelerator, self.weights.optimizer
        torch.manual_seed(seed_of("step", self.settings.seed, step, accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(batch, step)
        value = float(accelerator.reduce(loss.detach().float(), reduction="mean"))
        if not isfinite(value):
            return None
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip or float("inf"))
        if accelerator.scaler is None and not isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm):
            return None
        optimizer.step()
        optimizer.zero_grad()
        return value

    def _loss(self, batch: Batch, step: int) -> Tensor:
        inputs, target = _on_device(batch, self.accelerator.device)
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        try:
            with self.accelerator.autocast():
                loss = self.objective(self.weights.network, inputs, target)
            _check_loss(loss)
        except LrzipError:
            raise
        except torch.OutOfMemoryError as error:
            raise LrzipError(f"The device is out of memory in step {step + 1}. Lower `batch_size=N`.") from error
        except Exception as error:
            raise LrzipError(f"Step {step + 1}, on inputs {described(inputs)}: {typed_line(error)}.") from error
        return loss


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        what = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise LrzipError(
            f"The loss, {what}, is no scalar tensor that depends on weights which can be trained. "
            "Check `loss=pkg.mod:fn`, and `requires_grad` in the network."
        )


def _on_device(batch: Batch, device: torch.device) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), batch)
