"""Search: probes in, matches out; from Milvus or by an exact scan of shards."""
