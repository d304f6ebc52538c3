"""Turn requests into plans, and plans into factors."""
