"""One Milvus server: its capabilities, its collections, and search in one of them."""
