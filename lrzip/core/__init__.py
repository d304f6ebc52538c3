"""The vocabulary: values that rooms exchange, without any input or output."""
