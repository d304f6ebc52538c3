"""Formats that torch writes: state dicts, modules, TorchScript and exported programs."""
