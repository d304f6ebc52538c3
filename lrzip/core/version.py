"""The version of lrzip."""

__version__ = "0.2.0"
