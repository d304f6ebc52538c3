"""Data: arrays, folders of images and datasets of the user."""
