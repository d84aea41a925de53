"""`/versions` announces exactly what is served: each flag stands for something, and each unstable path has its flag."""

from __future__ import annotations

import re

from homeserver.features.versions import VERSIONS
from homeserver.server import all_features

UNSTABLE = "/_matrix/client/unstable/"

# The unstable paths, by what follows the prefix, with the flag by which clients know that they are served.
FLAG_OF_PATH = {
    "im.nheko.summary/": "im.nheko.summary",
    "io.element.msc4306/": "org.matrix.msc4306",
    "io.element.msc4308/": "org.matrix.msc4306",
    "io.element.msc4388/": "io.element.msc4388",
    "keys/device_signing/": "org.matrix.e2e_cross_signing",
    "org.matrix.msc4108/": "org.matrix.msc4108",
    "org.matrix.msc4140/": "org.matrix.msc4140",
    "org.matrix.msc4143/": "org.matrix.msc4143",
    "org.matrix.simplified_msc3575/": "org.matrix.simplified_msc3575",
    "uk.half-shot.msc2666/": "uk.half-shot.msc2666.query_mutual_rooms",
    "uk.tcpip.msc4133/": "uk.tcpip.msc4133",
}
# Clients try these without asking first, and the proposals name no flag.
WITHOUT_FLAG = ("org.matrix.msc2965/", "org.matrix.msc3814.v1/")
# Flags that stand for something at a stable path.
AT_STABLE_PATHS = {
    "org.matrix.msc3266": "/_matrix/client/v1/room_summary/",
    "org.matrix.msc3827.stable": "/_matrix/client/v3/publicRooms",
    "uk.half-shot.msc2666.query_mutual_rooms.stable": "/_matrix/client/v1/mutual_rooms",
    "uk.tcpip.msc4133.stable": "/_matrix/client/v3/profile/{user_id}/{key_name}",
}

FLAGS = {name: is_on for feature in all_features() for name, is_on in feature.unstable_features.items()}
PATHS = {operation.path for feature in all_features() for operation in feature.routes}


def test_every_unstable_path_has_its_flag() -> None:
    unstable = {path.removeprefix(UNSTABLE) for path in PATHS if path.startswith(UNSTABLE)}
    without = {path for path in unstable if not path.startswith((*FLAG_OF_PATH, *WITHOUT_FLAG))}
    assert not without, f"give these a flag: {without}"
    for beginning, flag in FLAG_OF_PATH.items():
        assert FLAGS[flag] is True, beginning


def test_every_flag_stands_for_something_that_is_served() -> None:
    wanted = [(flag, UNSTABLE + beginning) for beginning, flag in FLAG_OF_PATH.items()]
    wanted += AT_STABLE_PATHS.items()
    served = {flag for flag, beginning in wanted if any(path.startswith(beginning) for path in PATHS)}
    assert {flag for flag, is_on in FLAGS.items() if is_on} == served


def test_versions_are_all_from_the_first_stable_one_on() -> None:
    assert tuple(f"v1.{minor}" for minor in range(1, 20)) == VERSIONS
    assert all(re.fullmatch(r"v1\.[0-9]+", version) for version in VERSIONS)
