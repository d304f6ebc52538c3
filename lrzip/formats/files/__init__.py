"""Files: atomic and streaming writes, and reading without executing code."""
