"""The smallest network within a bound on its metric."""
