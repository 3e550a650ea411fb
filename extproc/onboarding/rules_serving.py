"""Check the served model: storage, image and canary, and secrets in plain text."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from extproc.onboarding.charts import WITH_CANARY
from extproc.onboarding.facts import CONTAINERS, MODEL, Facts, at
from extproc.onboarding.layering import Path, look, spell
from extproc.onboarding.problem import Problem, error, warning

Rule = Callable[[Facts], Iterator[Problem]]

SCHEMES: Final = (
    "hf",
    "s3",
    "gs",
    "pvc",
    "oci",
    "oci+native",
    "oci+fetch",
    "https",
    "http",
    "hdfs",
    "webhdfs",
    "file",
)
_SECRET_NAME: Final = re.compile(r"(?i)(^|_)(token|password|passwd|secret|api_?key|access_?key|private_?key)$")
_SECRET_TEXT: Final = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bAKIA[A-Z0-9]{16}\b|\bsk-[\w-]{20,}|\bgh[pousr]_\w{20,}|\bglpat-[\w-]{15,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\."
)
_FILLED_IN: Final = re.compile(r"\$\(.+\)|\$\{.+\}|")  # by Kubernetes, by Flux, or not at all


def a_model(facts: Facts) -> Iterator[Problem]:
    where = at(*MODEL)
    given = [key for key in ("storageUri", "image", "runtime") if facts.model.get(key)]
    named = look(facts.model, "modelFormat", "name")
    canary = [path for path in facts.canary if path[:-1] == MODEL]
    if facts.kind == "containers":
        if named or given:
            what = given[0] if given else "modelFormat.name"
            yield error(f"{where}.{what}", "a model and containers: one of them serves", "take one of them out")
        if canary:
            yield error(
                spell(canary[0]), "a container's canary is an image", "newImage or newImageTag of the container"
            )
    elif facts.partial:
        return
    elif facts.kind == "example":
        level = warning if facts.elsewhere else error
        yield level(
            where,
            "no model is named: the chart would serve its example, sklearn's iris",
            "give modelFormat.name and storageUri, or containers",
        )
    elif facts.kind == "model" and not named:
        yield error(f"{where}.modelFormat.name", "the model's format is missing", "such as huggingface or sklearn")
    elif facts.server != "huggingface" and not facts.model.get("storageUri"):
        yield error(f"{where}.storageUri", "it says nowhere where the model is", "such as hf://, s3:// or pvc://")


def storage(facts: Facts) -> Iterator[Problem]:
    further = facts.get("platform", "storageSchemes")
    schemes = (*SCHEMES, *(str(each) for each in _list(further)))
    for key in ("storageUri", "newStorageUri"):
        uri = facts.text(*MODEL, key)
        if uri and not _FILLED_IN.fullmatch(uri):
            yield from storage_problems(at(*MODEL, key), uri, schemes)
    same = facts.model.get("storageUri") == facts.model.get("newStorageUri")
    if same and facts.text(*MODEL, "newStorageUri"):
        yield warning(at(*MODEL, "newStorageUri"), "the canary's model is the primary's", "end it: canary abort")


def storage_problems(where: str, uri: str, schemes: tuple[str, ...] = SCHEMES) -> Iterator[Problem]:
    """Yield the problems of a model's address."""
    scheme, separator, rest = uri.partition("://")
    hub = re.match(r"https?://(?:www\.)?huggingface\.co/([\w.-]+/[\w.-]+)(?:/tree/([\w.-]+))?", uri)
    shown = f"'{uri[:80]}'"
    if hub:
        meant = f"hf://{hub[1]}" + (f":{hub[2]}" if hub[2] and hub[2] != "main" else "")
        yield error(where, "a page of Hugging Face, not a model that can be fetched", f"write {meant}")
    elif not separator and not uri.startswith("/"):
        named = re.fullmatch(r"[\w.-]+/[\w.-]+", uri)
        meant = f"hf://{uri}, if it is on Hugging Face" if named else f"such as {schemes[0]}://, s3:// or pvc://"
        yield error(where, f"{shown} has no scheme", meant)
    elif separator and (not rest.strip("/") or (rest.startswith("/") and scheme != "file")):
        form = "pvc://<claim>/<path>" if scheme == "pvc" else f"{scheme}://<name>/<path>"
        yield error(where, f"{shown} lacks what comes first after {scheme}://", form)
    elif scheme == "efs" and scheme not in schemes:
        yield error(where, "EFS is reached through a PersistentVolumeClaim", "pvc://<claim>/<path>")
    elif separator and scheme.lower() in schemes and scheme not in schemes:
        yield error(where, f"the scheme '{scheme}' must be in small letters", f"{scheme.lower()}://{rest}")
    elif separator and scheme not in schemes:
        yield error(
            where,
            f"KServe knows no {scheme}://",
            f"one of {', '.join(schemes)}; or platform.storageSchemes, "
            "where the cluster has a ClusterStorageContainer for it",
        )
    elif scheme == "hf" and not re.fullmatch("[^/:@]+/[^/:@]+(:[^/@]+)?", rest):
        meant = (
            uri.replace("@", ":") if "@" in uri else "hf://organisation/model or hf://organisation/model:revision"
        )
        yield error(where, f"{shown} is not how a model of Hugging Face is named", meant)
    if re.match(r"[^/]*:[^/@]+@", rest):
        yield warning(where, "a password stands in the address", "a Secret: storageKey, or serviceAccountName")


def image(facts: Facts) -> Iterator[Problem]:
    for path, holder in _holders(facts):
        name, tag = str(holder.get("image") or ""), str(holder.get("newImageTag") or "")
        base = name.rpartition("/")[2]
        if tag and not name and not holder.get("newImage"):
            yield error(at(*path, "newImageTag"), "a tag of which image? There is none", "give image too")
        if tag and holder.get("newImage"):
            yield warning(
                at(*path, "newImageTag"), "is put on newImage, in place of its own tag", "give one of them"
            )
        for key, text in (("image", name), ("newImage", str(holder.get("newImage") or ""))):
            last = text.rpartition("/")[2]
            if text and "@" not in last and (":" not in last or last.endswith(":latest")):
                yield warning(
                    at(*path, key),
                    "without a fixed tag: pods may differ, and nothing can be rolled back",
                    "a tag such as :v1.2, or a digest",
                )
        if tag and base.endswith(f":{tag}"):
            yield warning(at(*path, "newImageTag"), "the canary's image is the primary's", "end it: canary abort")


def canary(facts: Facts) -> Iterator[Problem]:
    if facts.chart != WITH_CANARY:
        for path in facts.canary:
            yield error(
                spell(path), "a canary needs the chart kserve-general", "use that chart; its values are the same"
            )
        return
    load = facts.number("primaryLoad")
    if facts.canary and load == 100:  # noqa: PLR2004 - percent
        yield warning("primaryLoad", "the canary runs and gets no requests", "canary shift --primary-load 90")
    elif facts.canary and load == 0:
        yield warning("primaryLoad", "the canary gets everything, the primary's pods stand idle", "canary promote")
    elif not facts.canary and not facts.partial and load not in (None, 100):
        yield warning(
            "primaryLoad", "no canary runs: all requests go to the primary", "canary start, or leave it out"
        )


def secrets(facts: Facts) -> Iterator[Problem]:
    """Yield secrets among the values. Values are in Git and in the cluster's release history, so a secret leaks
    there.
    """
    for path, holder in _holders(facts):
        for key in ("env", "var_env"):
            for index, each in enumerate(_list(holder.get(key))):
                name, value = str(look(each, "name") or ""), str(look(each, "value") or "")
                if not _FILLED_IN.fullmatch(value) and (_SECRET_NAME.search(name) or _SECRET_TEXT.search(value)):
                    fix = f"a Secret: {{name: {name}, valueFrom: {{secretKeyRef: {{name: ..., key: ...}}}}}}"
                    yield warning(at(*path, key, index), f"{name} looks like a secret in plain sight", fix)
        for index, text in enumerate(_list(holder.get("args"))):
            if _SECRET_TEXT.search(str(text)) or re.match(r"--?(api-?key|token|password)=[^$]", str(text)):
                yield warning(
                    at(*path, "args", index),
                    "looks like a secret in plain sight",
                    "an environment variable from a Secret, used as $(NAME)",
                )


def _holders(facts: Facts) -> list[tuple[Path, Mapping[str, Any]]]:
    containers = [((*CONTAINERS, index), each) for index, each in enumerate(facts.containers)]
    return [(MODEL, facts.model), *containers]


def _list(found: object) -> list[Any]:
    return found if isinstance(found, list) else []


RULES: Final[tuple[Rule, ...]] = (a_model, storage, image, canary, secrets)
