"""List all operations. Routes, the OpenAPI document and the matrix of roles come from this table."""

from typing import Final

from extproc.admin.api import about, auditing, deciding, limits, requests, tenants, usage
from extproc.admin.api.operation import Operation

OPERATIONS: Final[tuple[Operation, ...]] = (
    *tenants.OPERATIONS,
    *limits.OPERATIONS,
    *usage.OPERATIONS,
    *requests.OPERATIONS,
    *auditing.OPERATIONS,
    *deciding.OPERATIONS,
    *about.OPERATIONS,
)
