"""Data types and options that the other packages share."""
