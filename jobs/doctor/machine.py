"""What `clvr doctor` looks at on this machine: GPU, disk and clock."""

import os
import shutil
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from infra.checks import Finding, broken, ok, skipped, warning
from infra.settings import Settings
from infra.store_settings import StoreSettings

ROW_BYTES = 2 * 4400  # a crop's row, once as a part and once in its shard
SCRATCH_BYTES = 2 << 30  # of /tmp: compiled models, and what Ray puts to disk
SHARED_BYTES = 64 << 20  # of /dev/shm: Ray's object store
# Locks outlive their owner by 60 s, so clocks must agree within that; S3 refuses signatures after 15 min.
SKEW_WARNING, SKEW_BROKEN = 10.0, 45.0


def check_gpu() -> Finding:
    """Whether torch and the driver agree on the GPUs."""
    import torch

    driver = Path("/proc/driver/nvidia/version")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        count = torch.cuda.device_count()
        name = torch.cuda.get_device_name(0)
        return ok(
            "gpu", f"{count} x {name}, {free >> 20:,} of {total >> 20:,} MiB free, torch {torch.__version__}"
        )
    if driver.exists():
        built = torch.version.cuda or "no CUDA"
        return broken(
            "gpu",
            f"there is a driver, but torch {torch.__version__} (built for {built}) sees no GPU",
            "install the CUDA build of the pinned torch, or give the container the GPU",
        )
    return ok("gpu", f"none here: models run on the CPU, {os.cpu_count()} cores, by OpenVINO or torch")


def check_disk(settings: Settings, crops: int) -> list[Finding]:
    """Whether there is room: for runs, if they are local, for scratch files and for Ray's object store."""
    needs = [(Path("/tmp"), SCRATCH_BYTES, "scratch files")]  # noqa: S108  Ray's and ours
    if Path("/dev/shm").exists():  # noqa: S108  the kernel's name for it
        needs.append((Path("/dev/shm"), SHARED_BYTES, "Ray's object store"))  # noqa: S108
    if not settings.runs.startswith("s3://"):
        needs.append((Path(settings.runs.removeprefix("file://")), max(ROW_BYTES * crops, 1 << 30), "runs"))
    if "://" not in settings.milvus:
        needs.append((Path(settings.milvus), max(3 * 4096 * crops, 1 << 30), "Milvus Lite"))
    found = [_room(*need) for need in needs]
    short = [one for one in found if one.state != "ok"]
    return short or [ok("disk", "; ".join(one.says for one in found))]


def check_clock(storage: StoreSettings, settings: Settings) -> Finding:
    """Whether our clock agrees with the object storage's, by the Date of an answer."""
    if not settings.runs.startswith("s3://"):
        return skipped("clock", "nothing remote to compare it with")
    import httpx2

    endpoint = storage.endpoint or f"https://s3.{storage.region}.amazonaws.com"
    try:
        before = datetime.now(UTC)
        reply = httpx2.get(endpoint, timeout=5.0)  # what it answers does not matter, but when
        after = datetime.now(UTC)
    except httpx2.HTTPError as error:
        return skipped("clock", f"{endpoint} gives no time: {type(error).__name__}")
    if "date" not in reply.headers:
        return skipped("clock", f"{endpoint} says no time")
    theirs = parsedate_to_datetime(reply.headers["date"])
    # The header has whole seconds: half a second is the best guess for the rest.
    skew = abs((before + (after - before) / 2 - theirs).total_seconds() - 0.5)
    says = f"{skew:.0f} s apart from the object storage's"
    remedy = "let NTP set the clocks of this machine and of the server"
    if skew > SKEW_BROKEN:
        return broken(
            "clock", f"{says}: locks cannot be trusted, and from 15 min on no request passes", remedy
        )
    return warning("clock", says, remedy) if skew > SKEW_WARNING else ok("clock", says)


def _room(path: Path, needed: int, what: str) -> Finding:
    there = path.absolute()
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        return broken("disk", f"{there}, for {what}, is not ours to write into", "choose another folder")
    free = shutil.disk_usage(there).free
    says = f"{free / 2**30:,.1f} GiB free for {what}"
    if free < needed:
        return broken(
            "disk",
            f"{says} in {there}, {needed / 2**30:,.1f} are needed",
            "free some space, or use another disk",
        )
    return ok("disk", says)
