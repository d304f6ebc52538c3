"""Live PyTorch networks: what their modules are, how layers are replaced, observed and traced."""
