"""A network namespace for a server that always listens on every interface.

Only the server's process holds the namespace: when it ends, the kernel removes the namespace and the veth
pair, so nothing stale remains.
"""

import os
import random
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

# RFC 2544 reserves 198.18.0.0/15 for benchmarks: no real network uses it.
_SLOTS = range(1 << 15)
_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class NetworkNamespace:
    """A namespace and its veth pair: `host` is the address of this side, `inside` the server's.

    Only this machine can reach the two addresses.
    """

    host: str
    inside: str
    name: str  # of the host's end of the veth pair; '<name>i' is the other end

    @classmethod
    def choose(cls) -> "NetworkNamespace | None":
        """Return one that is not in use, or None without the means to create it (root, iproute2)."""
        if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "setpriv"))):
            return None
        for slot in random.sample(_SLOTS, 20):
            third, fourth = divmod(slot * 4, 256)
            prefix = f"198.{18 + third // 256}.{third % 256}"
            namespace = cls(f"{prefix}.{fourth + 1}", f"{prefix}.{fourth + 2}", f"clvr{slot}")
            if namespace.is_free():
                return namespace
        return None

    def is_free(self) -> bool:
        """Whether it can be created now: as root, and with its name and addresses unused."""
        return (
            os.geteuid() == 0 and f" {self.host}/" not in _ip("-o", "address").stdout and self._can_create()
        )

    def wrap(self, command: list[str]) -> list[str]:
        """Return the command that waits for `connect` in a new namespace and then executes `command`."""
        script = (
            "read -r _ && ip link set lo up"
            f" && ip address add {self.inside}/30 dev {self.name}i && ip link set {self.name}i up"
            ' && exec "$@" < /dev/null'
        )
        return ["unshare", "--net", "--", "sh", "-c", script, "sh", *command]

    def connect(self, pid: int) -> None:
        """Create the veth pair between this machine and the namespace of a process started by `wrap`.

        Raises OSError if the system refuses it.
        """
        host_namespace = Path("/proc/self/ns/net").readlink()
        deadline = time.monotonic() + _SECONDS
        while Path(f"/proc/{pid}/ns/net").readlink() == host_namespace:
            if time.monotonic() > deadline:
                raise OSError("the server's process did not get a network namespace")
            time.sleep(0.01)
        steps = (
            f"link add {self.name} type veth peer name {self.name}i netns {pid}",
            f"address add {self.host}/30 dev {self.name}",
            f"link set {self.name} up",
        )
        for step in steps:
            # After a restart the kernel may still be removing the old pair of this name.
            while (done := _ip(*step.split())).returncode:
                if time.monotonic() > deadline:
                    raise OSError(f"ip {step}: {done.stderr.strip()}")
                time.sleep(0.05)

    def _can_create(self) -> bool:
        # Try it: containers differ in the permissions of their root.
        if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:  # noqa: S607
            return False
        if _ip("link", "add", self.name, "type", "veth", "peer", "name", f"{self.name}i").returncode:
            return False
        return _ip("link", "delete", self.name).returncode == 0


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)  # noqa: S607
