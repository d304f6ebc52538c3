"""Training and evaluation of networks: data, losses, metrics and the training loop.

accelerate and torchmetrics are imported in this package only.
"""
