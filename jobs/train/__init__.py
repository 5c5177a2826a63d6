"""`clvr train`: Ray Train fits a network by a recipe."""
