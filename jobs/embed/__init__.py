"""`clvr plan`, `clvr embed` and `clvr status`: from the archive to shards."""
