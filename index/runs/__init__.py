"""Runs: the embedding of one manifest by one model, as an immutable folder of shards and quarantine."""
