"""Servers that stand together, started once a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.topologies import Cluster, Watched, cluster, sentinel


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    with cluster() as found:
        yield found


@pytest.fixture(scope="session")
def running_sentinel() -> Iterator[Watched]:
    with sentinel() as found:
        yield found


@pytest.fixture
def clustered(running_cluster: Cluster) -> Cluster:
    """A cluster, whole and empty."""
    running_cluster.empty()
    return running_cluster


@pytest.fixture
def watched(running_sentinel: Watched) -> Watched:
    """Servers that sentinels watch, all alive and empty."""
    running_sentinel.empty()
    return running_sentinel


@pytest.fixture(params=["clustered", "watched"])
def servers(request: pytest.FixtureRequest) -> Cluster | Watched:
    """Either of these."""
    found: Cluster | Watched = request.getfixturevalue(request.param)
    return found
