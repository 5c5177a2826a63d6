"""`clvr search`: one or several probes against the live generation or the shards."""
