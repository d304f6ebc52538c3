"""Training data: files of arrays, folders of images, and datasets supplied by the user."""
