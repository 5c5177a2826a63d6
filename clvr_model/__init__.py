"""The CLVR network and its recipe: torch only, no Ray, no object storage client, no Milvus."""
