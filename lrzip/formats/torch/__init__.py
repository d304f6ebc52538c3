"""Formats that torch writes: state_dicts, modules, TorchScript and exported programs."""
