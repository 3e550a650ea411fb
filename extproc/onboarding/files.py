"""Read values as they are in Git: a plain values file, or the `spec.values` of a Flux HelmRelease."""

import re
from dataclasses import dataclass
from typing import Any, Final

import yaml

from extproc.given import files as given
from extproc.onboarding import layering, reading
from extproc.onboarding.charts import MODEL_CHARTS, PLAIN, WITH_CANARY
from extproc.onboarding.errors import OnboardingError

STDIN: Final = given.STDIN
BOM: Final = "\ufeff"
CANARY_KEYS: Final = ("newStorageUri", "newImage", "newImageTag")


@dataclass(frozen=True, slots=True)
class Model:
    """Hold one model's values. `values` are without the chart's defaults.

    `chart` is the one that was `told` (by the caller or the file), or else the one that the keys suggest.
    `partial`: it is a patch of another HelmRelease. `elsewhere`: it has `valuesFrom`, for example the platform's.
    `node` is the place of the values in the text, below `prefix` in document number `document`.
    """

    source: str
    values: dict[str, Any]
    chart: str
    told: bool
    release: str | None
    namespace: str | None
    helmrelease: bool
    partial: bool
    elsewhere: bool
    node: yaml.MappingNode
    document: int = 0
    prefix: layering.Path = ()

    def line_of(self, path: layering.Path) -> int | None:
        """Return the line of the value at this path, or of its nearest parent that is in the file."""
        node: yaml.Node = self.node
        found: int | None = None
        for key in path:
            step = _step(node, key)
            if step is None:
                break
            found, node = step
        return found


def _step(node: yaml.Node, key: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for text, name, value in reading.pairs(node):
            if text == key:
                return reading.line(name), value
    elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return reading.line(node.value[key]), node.value[key]
    return None


def load(name: str) -> str:
    """Return a file's text; `-`: stdin. The size is bounded. Raise `OnboardingError`."""
    try:
        raw = given.read(name, reading.MAX_BYTES)
    except given.GivenFileError as error:
        raise OnboardingError(f"{name}: {error}") from None
    return decode(raw, name)


def decode(raw: bytes, source: str) -> str:
    """Return the text of a file's bytes; a byte order mark is kept. Raise `OnboardingError`."""
    if len(raw) > reading.MAX_BYTES:
        raise OnboardingError(f"{source}: larger than {reading.MAX_BYTES // 1024} KiB: this is no values file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise OnboardingError(f"{source}: no UTF-8 text: this is no values file") from None
    if "\0" in text:
        raise OnboardingError(f"{source}: a binary file: this is no values file")
    return text


def models(text: str, source: str, chart: str | None = None) -> list[Model]:
    """Return every model of a text, at least one. `chart` overrides the text. Raise `OnboardingError`."""
    documents = reading.compose(text.removeprefix(BOM), source)
    if not documents:
        raise OnboardingError(f"{source}: empty")
    releases = [(number, node) for number, node in enumerate(documents) if _is_helmrelease(node)]
    if releases:
        found = [_of_release(node, number, source, chart) for number, node in releases]
        ours = [each for each in found if each is not None]
        if not ours:
            raise OnboardingError(
                f"{source}: its HelmRelease's chart is not {' or '.join(MODEL_CHARTS)}; --chart says which it is"
            )
        return ours
    node = documents[0]
    if len(documents) > 1:
        raise OnboardingError(f"{source}: several YAML documents; Helm would take one of them alone")
    if not isinstance(node, yaml.MappingNode):
        raise OnboardingError(f"{source}: not a map of values, such as 'replicaCount: 1'")
    if _scalar_of(node, "kind") and _scalar_of(node, "apiVersion"):
        raise OnboardingError(f"{source}: a {_scalar_of(node, 'kind')}; neither values nor a Flux HelmRelease")
    values = reading.data(node, source)
    head = _head(text)
    told = chart or head.get("chart")
    return [
        Model(
            source=source,
            values=values,
            chart=told or _by_keys(values),
            told=told is not None,
            release=head.get("release"),
            namespace=head.get("namespace"),
            helmrelease=False,
            partial=False,
            elsewhere=False,
            node=node,
        )
    ]


def one(text: str, source: str, chart: str | None = None, release: str | None = None) -> Model:
    """Return the only model of a text, or the one with this release name. Raise `OnboardingError`."""
    found = models(text, source, chart)
    if len(found) == 1:
        return found[0]
    chosen = [each for each in found if release is not None and each.release == release]
    if len(chosen) != 1:
        names = ", ".join(str(each.release) for each in found)
        raise OnboardingError(f"{source}: several models ({names}): --release says which")
    return chosen[0]


def _is_helmrelease(node: yaml.Node) -> bool:
    group = str(_scalar_of(node, "apiVersion")).partition("/")[0]
    return _scalar_of(node, "kind") == "HelmRelease" and group == "helm.toolkit.fluxcd.io"


def _of_release(node: yaml.Node, number: int, source: str, chart: str | None) -> Model | None:
    spec = _child(node, "spec")
    inner = _child(spec, "values")
    where = f"{source}: line {reading.line(node)}: the HelmRelease"
    if inner is None or (isinstance(inner, yaml.ScalarNode) and not inner.value):
        inner = yaml.MappingNode("tag:yaml.org,2002:map", [], node.start_mark, node.start_mark)
    if not isinstance(inner, yaml.MappingNode):
        raise OnboardingError(f"{where}'s spec.values is not a map")
    named = _chart_of(spec)
    values = reading.data(inner, source)
    known = chart or (next((each for each in MODEL_CHARTS if named == each), None))
    if known is None and named is not None:
        return None
    about = _child(node, "metadata")
    target = _scalar_of(spec, "targetNamespace")
    name = _scalar_of(about, "name")
    # If Flux makes the release's name, it begins with the target's namespace.
    made = f"{target}-{name}" if target and name else name
    return Model(
        source=source,
        values=values,
        chart=known or _by_keys(values),
        told=known is not None,
        release=_scalar_of(spec, "releaseName") or made,
        namespace=target or _scalar_of(about, "namespace"),
        helmrelease=True,
        partial=named is None,
        elsewhere=_child(spec, "valuesFrom") is not None,
        node=inner,
        document=number,
        prefix=("spec", "values"),
    )


def _chart_of(spec: yaml.Node | None) -> str | None:
    """Return the chart's name; for a path in Git its last part. None: there is none."""
    named = _scalar_of(_child(_child(spec, "chart"), "spec"), "chart") or _scalar_of(
        _child(spec, "chartRef"), "name"
    )
    return named.rstrip("/").rpartition("/")[2] if named else None


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for text, _, value in reading.pairs(node) if text == key), None)


def _scalar_of(node: yaml.Node | None, key: str) -> str | None:
    child = _child(node, key)
    return str(child.value) if isinstance(child, yaml.ScalarNode) and child.value else None


def _head(text: str) -> dict[str, str]:
    """Return chart, release and namespace from the comment at the top, as drafts write it."""
    comments = re.match(r"(?:[ \t]*(?:#[^\n]*|---)?\r?\n)*", text.removeprefix(BOM))
    head = comments[0] if comments else ""
    chart = re.search(r"\bchart (kserve-[a-z]+)\b", head)
    named = re.search(
        r"\bmodel ([a-z][a-z0-9-]*)(?: \(namespace ([a-z0-9][a-z0-9-]*)\))? for the chart kserve-", head
    )
    found = {"chart": chart[1] if chart and chart[1] in MODEL_CHARTS else None}
    found |= {"release": named[1] if named else None, "namespace": named[2] if named else None}
    return {key: value for key, value in found.items() if value}


def _by_keys(values: dict[str, Any]) -> str:
    predictor = layering.look(values, "inferenceservice", "predictor")
    containers = layering.look(predictor, "containers")
    holders = [layering.look(predictor, "model"), *(containers if isinstance(containers, list) else [])]
    canary = any(layering.look(each, key) for each in holders for key in CANARY_KEYS)
    return WITH_CANARY if canary or "primaryLoad" in values or "canary" in values else PLAIN
