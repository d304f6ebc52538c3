"""Training and measuring networks. Only here are accelerate and torchmetrics needed, of the extra `train`."""
