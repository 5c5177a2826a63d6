"""The live generation of an alias, for programs: features in, ranked crops out."""

from typing import Self

import numpy as np
from numpy.typing import NDArray

from index.filters import Filters
from index.generations.units import members_of
from index.milvus.client import connect
from index.milvus.collection import live_generation, require_live, row_count
from index.milvus.search import Hit
from index.runs.tombstones import TombstoneWatch
from index.search.milvus_source import MilvusSource
from index.transforms.stored import read_transform
from infra.store import open_store


class Index:
    """One generation, resolved once: all answers are from it, even if the alias moves meanwhile.

    Safe to share between threads. It ranks by L2 distance alone; `clvr search` also applies the rules of
    re-identification (`index.search.retrieval`).
    """

    def __init__(self, source: MilvusSource) -> None:
        self.source = source

    @classmethod
    def open(
        cls,
        milvus: str,
        runs: str,
        *,
        alias: str = "vehicles",
        fingerprint: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Open the generation that an alias points to.

        milvus: http(s)://host:port, or a path that ends in '.db'. runs: the folder of its runs, a path or an
        s3:// URI, which has the erased crops and the feature transforms. fingerprint: that of the model of
        the features, such as `Embedder.fingerprint`, to be compared with the generation's.
        Raises BadInput if nothing is live, FingerprintMismatch, IndexUnreachable, IndexRefused, Locked.
        """
        client = connect(milvus, token)
        try:
            live = live_generation(client, alias)
            generation = require_live(client, alias, fingerprint or (live.fingerprint if live else ""))
            store = open_store(runs)
            transform = read_transform(store, generation.fingerprint, generation.transform)
            members = members_of(store, generation.name)
            return cls(MilvusSource(client, generation, TombstoneWatch([store]), transform, members))
        except BaseException:
            client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection: only one process can open a Milvus Lite file."""
        self.source.milvus.close()

    @property
    def name(self) -> str:
        """The generation, such as vehicles_1a2b3c4d_20261130T020000Z."""
        return self.source.name

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model whose features it holds."""
        return self.source.fingerprint

    def __len__(self) -> int:
        return row_count(self.source.milvus, self.source.generation)

    def search(
        self, features: NDArray[np.float32], top: int = 20, filters: Filters | None = None
    ) -> list[list[Hit]]:
        """Return the `top` nearest crops of each feature, nearest first, without erased ones.

        features: float32 (q, 1024) as the network gives them; a transform of the generation is applied here,
        with the statistics of all cameras. Raises BadInput for features of another length or that are not
        finite, BadSetting for `top` out of range, IndexUnreachable, IndexRefused.
        """
        features = np.atleast_2d(np.asarray(features, np.float32))
        if self.source.transform is not None:
            features = self.source.transform(features)
        return self.source.nearest(features, top, filters or Filters())
