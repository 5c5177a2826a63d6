"""One embedding of one manifest by one model: an immutable folder of shards and quarantine."""
