"""What `clvr submit` and `clvr jobs` are made of, on this side and on the cluster."""
