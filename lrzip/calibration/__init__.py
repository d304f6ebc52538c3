"""Calibration: ranks and factors chosen by the activations of layers on calibration data."""
