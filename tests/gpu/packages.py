"""Add the packages that `run.py` needs and this Python lacks, in .venv-gpu; replace nothing that it has."""

import importlib.util
import subprocess
import sys

# Module -> its package. torch comes with the machine: only that build fits its driver.
PACKAGES = {
    "PIL": "pillow",
    "botocore": "botocore",
    "cv2": "opencv-python-headless",
    "numba": "numba",
    "numpy": "numpy",
    "obstore": "obstore",
    "pydantic": "pydantic",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "simplejpeg": "simplejpeg",
    "yaml": "pyyaml",
}


def main() -> None:
    """Make .venv-gpu if a package is missing."""
    if importlib.util.find_spec("torch") is None:
        sys.exit(f"{sys.executable} has no torch; give the Python that has: make gpu PYTHON=python3.12")
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return
    print(f"Adding {', '.join(missing)} in .venv-gpu ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", ".venv-gpu"], check=True)
    pip = [".venv-gpu/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", "constraints.txt", *missing], check=True)


if __name__ == "__main__":
    main()
