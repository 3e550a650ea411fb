"""The cluster of a run: `make cluster` names its kubeconfig in TOKENWEIR_CLUSTER. Without it nothing is collected."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, ClusterError
from .controllers import NAMES

KUBECONFIG = os.environ.get("TOKENWEIR_CLUSTER")
# An istiod on a folder of configuration needs no cluster (tests/cluster/istio).
if not KUBECONFIG and not os.environ.get("ISTIOD_ADDRESS"):
    collect_ignore_glob = ["*"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster; what was made in namespaces of this run is gone at the end."""
    if not KUBECONFIG:
        pytest.skip("no cluster: make cluster KUBECONFIG=...")
    found = Cluster(Path(KUBECONFIG).absolute())
    try:
        found.kubectl("get", "--raw", "/readyz")
    except ClusterError as error:
        pytest.fail(f"the cluster of {KUBECONFIG} does not answer: {error}")
    yield found
    left = found.clean()
    assert not left, f"these namespaces could not be removed: {left}"


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own; it is removed with all that is in it."""
    name = cluster.make_namespace()
    yield name
    cluster.remove_namespace(name)


@pytest.fixture(autouse=True)
def _needed(request: pytest.FixtureRequest) -> None:
    """List a test as not run whose controllers, named by `needs`, don't run."""
    wanted = [name for marker in request.node.iter_markers("needs") for name in marker.args]
    assert set(wanted) <= set(NAMES), f"{wanted}: controllers are called {NAMES}"
    if not wanted:
        return
    controllers = request.getfixturevalue("cluster").controllers
    for name in wanted:
        if name not in controllers:
            pytest.skip(f"needs {name}: {controllers.missing[name]}")
