"""Tell settings from the variables that Kubernetes adds to the environment."""

import re
from typing import Final

# Kubernetes puts such variables into every pod of a namespace for each Service called tokenweir or tokenweir-*.
_SERVICE_LINK: Final = re.compile(
    r"(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT(_\d+_(TCP|UDP|SCTP))?=\w+://.*"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)"
)


def is_service_link(variable: str, text: str, prefix: str) -> bool:
    """Tell whether `variable`, which begins with `prefix`, describes a Service and is no setting."""
    return _SERVICE_LINK.fullmatch(f"{variable.removeprefix(prefix)}={text}") is not None
