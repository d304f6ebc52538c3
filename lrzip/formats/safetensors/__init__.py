"""Safetensors: single files, shards, and folders of transformers."""
