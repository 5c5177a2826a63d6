"""`clvr doctor`: checks of settings, files, object storage, Milvus, Ray and this machine."""
