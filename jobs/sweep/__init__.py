"""`clvr sweep`: many probes over a window of the archive, resumable and audited."""
