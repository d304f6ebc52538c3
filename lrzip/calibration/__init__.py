"""Calibration: ranks and factors by what layers make of examples."""
