"""`python -m infra.store URI...`: create the buckets or folders that do not exist yet."""

import argparse

from infra.store import open_store


def main(uris: list[str]) -> None:
    """Create the root of each store; an existing one is left unchanged."""
    for uri in uris:
        open_store(uri).create_bucket()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m infra.store", description=main.__doc__)
    parser.add_argument("uris", nargs="+", metavar="URI", help="s3://bucket or a folder")
    main(parser.parse_args().uris)
