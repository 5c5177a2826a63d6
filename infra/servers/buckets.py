"""`python -m infra.servers.buckets NAME...`: makes buckets where the `AWS_*` variables point, if missing."""

import sys

from infra.store import open_store


def main(names: list[str]) -> None:
    """Create each bucket; one that is there already is left as it is."""
    for name in names:
        open_store(f"s3://{name}").create_bucket()


if __name__ == "__main__":
    main(sys.argv[1:])
