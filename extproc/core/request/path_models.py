"""Find the name of a model in a path, such as Azure's `/openai/deployments/NAME/chat/completions`."""

from collections.abc import Sequence
from typing import Final, NamedTuple

# The name of a model, of a deployment or of an endpoint follows one of these segments: Azure OpenAI, OpenAI's
# former API, Databricks, SageMaker, Hugging Face, and gateways that route by a prefix.
_MARKERS: Final = frozenset({"deployments", "engines", "serving-endpoints", "endpoints", "models", "model"})
# Segments between the name and the endpoint.
_API: Final = frozenset({"v1", "v2", "v3", "openai", "api"})
_AZURE: Final = ("openai", "deployments")


class PathModel(NamedTuple):
    """Hold the name of a model in a path. `decides`: the server goes by it, whatever model a body names."""

    name: str
    decides: bool


def model_in(names: Sequence[str], plain: Sequence[str]) -> PathModel | None:
    """Return the model that the segments before an endpoint name; None if they name none.

    `plain` are the segments in lower case. A name may have several segments: a slash in it may have been escaped.
    """
    azure = next((at for at in range(1, len(plain)) if tuple(plain[at - 1 : at + 1]) == _AZURE), None)
    places = [azure] if azure is not None else [at for at in reversed(range(len(plain))) if plain[at] in _MARKERS]
    for place in places:
        end = len(plain)
        while azure is None and end > place + 1 and plain[end - 1] in _API:
            end -= 1
        if end > place + 1:
            return PathModel("/".join(names[place + 1 : end]), decides=azure is not None)
    return None
