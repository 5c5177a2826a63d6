"""Checks of this machine: GPU, disk, clock, and files that hold secrets."""

import os
import shutil
import stat
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2

from infra.errors import BadSetting
from infra.settings import Settings, settings_file
from infra.store import StoreSettings
from jobs.doctor.check import CheckResult, failed, ok, skipped, warning

ROW_BYTES = 2 * 4400  # per crop: a row in a part and the same row in a shard
SCRATCH_BYTES = 2 << 30  # in /tmp: compiled models and Ray's spilled objects
SHARED_BYTES = 64 << 20  # in /dev/shm: Ray's object store
# Locks expire 60 s after their owner's end, so clocks must agree better than that. S3 rejects signatures
# that are 15 min old.
MAX_SKEW_OK, MAX_SKEW_WARNING = 10.0, 45.0
_SECRET_FILES = ("RAY_AUTH_TOKEN_PATH", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE")


def check_gpu() -> CheckResult:
    """Check that torch sees the GPUs that the driver has."""
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
        return failed(
            "gpu",
            f"a GPU driver is installed, but torch {torch.__version__} (built for {built}) sees no GPU",
            "Install the CUDA build of the pinned torch, or give the container access to the GPU.",
        )
    return ok("gpu", f"no GPU: models run on the CPU, {os.cpu_count()} cores, by OpenVINO or torch")


def check_disk(settings: Settings, crops: int) -> list[CheckResult]:
    """Check the free space for local runs, Milvus Lite, scratch files and Ray's object store."""
    needs = [(Path("/tmp"), SCRATCH_BYTES, "scratch files")]  # noqa: S108  where Ray and compiled models put files
    if Path("/dev/shm").exists():  # noqa: S108  the kernel's name for it
        needs.append((Path("/dev/shm"), SHARED_BYTES, "Ray's object store"))  # noqa: S108
    if not settings.runs.startswith("s3://"):
        needs.append((Path(settings.runs.removeprefix("file://")), max(ROW_BYTES * crops, 1 << 30), "runs"))
    if "://" not in settings.milvus:
        needs.append((Path(settings.milvus), max(3 * 4096 * crops, 1 << 30), "Milvus Lite"))
    results = [_check_space(*need) for need in needs]
    bad = [result for result in results if result.state != "ok"]
    return bad or [ok("disk", "; ".join(result.message for result in results))]


def check_clock(storage: StoreSettings, settings: Settings) -> CheckResult:
    """Check this machine's clock against the Date header of the object storage."""
    if not settings.runs.startswith("s3://"):
        return skipped("clock", "no remote storage to compare it with")

    endpoint = storage.endpoint or f"https://s3.{storage.region}.amazonaws.com"
    try:
        before = datetime.now(UTC)
        response = httpx2.get(endpoint, timeout=5.0)  # only the Date header matters, not the status
        after = datetime.now(UTC)
    except httpx2.HTTPError as error:
        return skipped("clock", f"{endpoint} does not answer: {type(error).__name__}")
    if "date" not in response.headers:
        return skipped("clock", f"{endpoint} sends no Date header")
    theirs = parsedate_to_datetime(response.headers["date"])
    # The header has whole seconds: half a second is its mean truncation.
    skew = abs((before + (after - before) / 2 - theirs).total_seconds() - 0.5)
    message = f"{skew:.0f} s off the object storage's clock"
    remedy = "Let NTP set the clocks of this machine and of the server."
    if skew > MAX_SKEW_WARNING:
        return failed(
            "clock", f"{message}: locks are unsafe, and from 15 min on every request is rejected", remedy
        )
    return warning("clock", message, remedy) if skew > MAX_SKEW_OK else ok("clock", message)


def check_files(config: Path | None) -> list[CheckResult]:
    """Check that only their owner can read files with secrets."""
    paths = [Path(os.environ[name]) for name in _SECRET_FILES if os.environ.get(name)]
    paths += [Path("~/.aws/credentials").expanduser()]
    try:
        file = settings_file(config)
    except BadSetting:
        file = None
    if file is not None and "milvus_token" in file.read_text(encoding="utf-8", errors="replace"):
        paths.append(file)
    results = []
    for path in paths:
        if path.is_file() and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
            results.append(
                warning("files", f"{path} holds a secret and has mode {mode:04o}", f"Run: chmod 600 {path}")
            )
        elif not path.is_file() and path.name != "credentials":
            results.append(
                failed(
                    "files", f"{path} is named by the environment and does not exist", "Correct the variable."
                )
            )
    return results or [ok("files", "only their owner can read files with secrets")]


def _check_space(path: Path, needed: int, purpose: str) -> CheckResult:
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return failed("disk", f"{folder}, for {purpose}, is not writable", "Choose another folder.")
    free = shutil.disk_usage(folder).free
    message = f"{free / 2**30:,.1f} GiB free for {purpose}"
    if free < needed:
        return failed(
            "disk",
            f"{message} in {folder}, {needed / 2**30:,.1f} GiB are needed",
            "Free some space, or use another disk.",
        )
    return ok("disk", message)
