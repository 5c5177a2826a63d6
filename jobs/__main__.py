"""`python -m jobs` is `clvr`."""

from jobs.cli import main

main()
