"""`clvr sweep`: search many probes in the archive, resumable and audited."""
