"""Calibration: ranks and factors chosen from the activations of layers on calibration data."""
