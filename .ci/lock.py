"""Write requirements.lock: each package of the extra `dev` and the SHA-256 of the file that pip chose.

    make lock
    pip install --require-hashes -r requirements.lock && pip install --no-deps -e .

The files are those of this platform, Python version and package index. constraints.txt, which holds for all
of them, stays the list to install from elsewhere.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"


def main() -> None:
    """Ask pip for what it would install, and write it down."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--report", "-", "--constraint", "constraints.txt", ".[dev]"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    lines = locked(json.loads(done.stdout))
    LOCK.write_text("\n".join(["# make lock", *lines, ""]), encoding="utf-8")
    print(f"{LOCK.name}: {len(lines)} packages")


def locked(report: dict[str, object]) -> list[str]:
    """Return a line for each package of pip's report, but this project."""
    lines = []
    for item in report["install"]:  # type: ignore[attr-defined]
        source = item["download_info"].get("archive_info")
        if source is None:  # the folder of this project
            continue
        metadata = item["metadata"]
        digest = source["hashes"]["sha256"]
        lines.append(f"{metadata['name']}=={metadata['version']} --hash=sha256:{digest}")
    return sorted(lines, key=str.lower)


if __name__ == "__main__":
    main()
