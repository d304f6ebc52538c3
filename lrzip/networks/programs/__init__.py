"""Programs of torch.export: their graphs, rewritten, run, observed and made trainable."""
