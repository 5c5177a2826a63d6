"""`clvr submit` and `clvr jobs`: commands that run on a Ray cluster."""
