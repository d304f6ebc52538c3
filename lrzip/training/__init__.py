"""Training and measuring networks: data, losses, metrics, the loop. Only here are accelerate and torchmetrics used."""
