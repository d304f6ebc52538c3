"""Mechanics of files."""
