"""What `clvr reindex` is made of: a night asked for, planned, done step by step, and told."""
