"""What an API server says to objects that it does not keep: a dry run with strict validation of fields."""

from typing import Any

import pytest

from tests.charts.helm import Document

from .cluster import Cluster, ClusterError


def told(cluster: Cluster, documents: list[Document], namespace: str) -> list[str]:
    """Return what the server refuses about the objects, or warns of; empty if it takes them all.

    Each object is tried in `namespace`, whichever it names: its own need not be there. Nothing is kept. The test ends as
    not run if the server lacks a kind among the objects.
    """
    if lacking := cluster.lacks(documents):
        pytest.skip(f"the cluster has no {', '.join(lacking)}")
    try:
        return cluster.apply([_at(each, namespace) for each in cluster.placed(documents, "")], "--dry-run=server")
    except ClusterError as error:
        return [str(error)]


def _at(document: Document, namespace: str) -> Document:
    metadata: dict[str, Any] = document["metadata"]
    return {**document, "metadata": {**metadata, "namespace": namespace}} if "namespace" in metadata else document
