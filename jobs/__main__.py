"""`python -m jobs` is `clvr`."""

from jobs.cli.app import main

main()
