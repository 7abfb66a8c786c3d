"""The world that the generated cases are run in: one per process that runs tests."""

import sys

import pytest
from generated.world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("the cases are forked and watched as Linux does it (pidfd, /proc, limits of memory)")
    return World(tmp_path_factory.mktemp("world"))
