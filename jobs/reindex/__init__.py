"""`clvr reindex`: embed what changed, load it, check it, promote it."""
