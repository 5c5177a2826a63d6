"""Reader of VeRi-776's test lists.

    name_query.txt, name_test.txt       file names such as 0002_c002_00030600_0.jpg: vehicle, camera, time
    image_query/, image_test/           the pictures

Source: the VeRi release (Liu et al., ECCV 2016). The queries are among the test pictures as well; the rule of
the same camera keeps them from finding themselves.
"""

import re
from typing import Final

from clvr_model.datasets.role_lists import RoleList, lines_of
from infra.errors import BadLabels

_NAME: Final = re.compile(r"([0-9]{1,9})_c([0-9]{1,9})_.*\.jpg")


def read_veri(root: str) -> RoleList:
    """The 1,678 queries and 11,579 test pictures. Raises BadLabels for a name that is not VeRi's."""
    from infra.store import open_store

    store = open_store(root)
    found = RoleList("veri", "veri-776")
    for name, folder, role in (
        ("name_query.txt", "image_query", "probe"),
        ("name_test.txt", "image_test", "gallery"),
    ):
        for where, text in lines_of(store, name):
            match = _NAME.fullmatch(text)
            if match is None:
                raise BadLabels(f"{where}: {text[:60]!r} is no name like 0002_c002_00030600_0.jpg")
            found.add(store.uri_of(f"{folder}/{text}"), int(match[1]), match[2], role)
    return found
