"""`python -m jobs` is `clvr`."""

from jobs.cli.main import main

main()
