"""The runs of a folder, and the crops that a run quarantined."""
