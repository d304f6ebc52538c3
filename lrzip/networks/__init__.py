"""Live PyTorch networks: recognize, replace and observe their layers, and trace them as programs."""
