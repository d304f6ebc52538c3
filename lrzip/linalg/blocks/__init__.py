"""Building blocks of the drivers in `lrzip.linalg`."""
