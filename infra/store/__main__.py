"""`python -m infra.store URI...`: create the buckets or folders that do not exist yet."""

import sys

from infra.store import open_store


def main(uris: list[str]) -> None:
    """Create the root of each store; an existing one is left unchanged."""
    for uri in uris:
        open_store(uri).create_bucket()


if __name__ == "__main__":
    main(sys.argv[1:])
