"""What a Milvus server can do, and one collection on it."""
