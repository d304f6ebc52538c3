"""Search for the smallest network within a bound on its metric."""
