"""Serve the form's requests: its fields, a preview, the reasons for each object, the files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from extproc.onboarding import charts, checking, explaining, helm
from extproc.onboarding.dumping import dump
from extproc.onboarding.errors import HelmMissing, HelmRefused, OnboardingError
from extproc.onboarding.layering import layered, look, overlaid
from extproc.onboarding.problem import Problem, error, warning
from extproc.onboarding.ui import essentials, filling, form, products
from extproc.onboarding.ui.opened import Opened

# Paths of entries that are no values: the fields beside the values.
RELEASE: Final = "$release"
NAMESPACE: Final = "$namespace"
PATCH: Final = "$patch"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MAX_NAME: Final = {RELEASE: 53, NAMESPACE: 63}


class Draft(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hold the form's content. `texts` are the free-form values as YAML by path; they override `values`."""

    chart: str
    release: str
    namespace: str
    values: dict[str, Any]
    texts: dict[str, str] = {}
    patch_path: str = ""


class Object(msgspec.Struct, frozen=True):
    """Hold one rendered object with its text."""

    kind: str
    name: str
    text: str


class Preview(msgspec.Struct, frozen=True):
    """Hold the preview. `refused` is Helm's or the chart's reason for having no objects. No `patch`: it can't be
    made.
    """

    values_text: str
    patch: str | None
    rendered: str
    objects: list[Object]
    problems: list[Problem]
    refused: str
    helm_missing: bool
    readable: bool
    file_changed: bool


class File(msgspec.Struct, frozen=True):
    """Hold one file to download."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Desk:
    """Run the use cases on the file that the form was opened with. Nothing here writes a file or calls a
    cluster.
    """

    opened: Opened
    chart: str
    release: str
    namespace: str
    helm: str | None = None
    below: Mapping[str, Any] = field(default_factory=dict)

    def defaults(self, chart: str) -> dict[str, Any]:
        """Return the values in effect without the file: the chart's defaults and the lower layers."""
        return layered(charts.defaults(chart), self.below)

    def form(self, chart: str) -> dict[str, Any]:
        """Return the content of the page. Raise `OnboardingError` for another chart."""
        found = form.sections(charts.schema(chart), self.defaults(chart))
        known = form.fields(found)
        return {
            "chart": chart,
            "charts": charts.MODEL_CHARTS,
            "with_canary": charts.WITH_CANARY,
            "release": self.release,
            "namespace": self.namespace,
            "file": str(self.opened.path) if self.opened.path else "",
            "is_release": self.opened.is_release,
            "patch_path": self.opened.in_repository(self.release) if self.opened.path else "",
            "values": self.opened.values,
            "texts": _texts(known, self.opened.values),
            "sections": found,
            "topics": [_existing(topic, known) for topic in essentials.TOPICS],
            "starters": [
                {
                    "label": each.label,
                    "help": each.help,
                    "values": each.values,
                    "texts": _texts(known, each.values),
                }
                for each in essentials.STARTERS
            ],
        }

    def values(self, draft: Draft) -> tuple[dict[str, Any], list[Problem]]:
        """Return the smallest values that express the form's content, and the unreadable inputs."""
        values, problems = filling.combined(draft.values, draft.texts)
        defaults = self.defaults(draft.chart)
        return filling.in_order(filling.smallest(values, self.opened.values, defaults), defaults), problems

    def preview(self, draft: Draft) -> Preview:
        """Return everything that the page shows while the user types."""
        values, unreadable = self.values(draft)
        named = _badly_named(draft)
        release, namespace = (None, None) if named else (draft.release, draft.namespace)
        full = overlaid(self.below, values)
        partial = self.opened.model is not None and self.opened.model.partial and not self.below
        problems = checking.problems(draft.chart, full, release, namespace, partial=partial)
        # An unreadable input has its own message; skip other problems at its path.
        paths = {each.path for each in unreadable}
        problems = [*named, *unreadable, *(each for each in problems if each.path not in paths)]
        rendered = refused = ""
        missing = False
        try:
            if not named:
                rendered = helm.render(draft.chart, full, draft.release, draft.namespace, self.helm)
        except HelmMissing as wrong:
            refused, missing = str(wrong), True
        except HelmRefused as wrong:
            refused = str(wrong)
        patch, wrong_path = self._patch(draft, values)
        return Preview(
            values_text=self._values_text(draft, values),
            patch=patch,
            rendered=rendered,
            objects=objects(rendered),
            problems=problems + wrong_path,
            refused=refused,
            helm_missing=missing,
            readable=not unreadable,
            file_changed=self.opened.changed(),
        )

    def _values_text(self, draft: Draft, values: dict[str, Any]) -> str:
        if self.opened.is_release:
            return products.values_file(values, draft.chart, draft.release)
        return self.opened.with_values(values, draft.chart, draft.release)

    def _patch(self, draft: Draft, values: dict[str, Any]) -> tuple[str | None, list[Problem]]:
        try:
            text = self.opened.with_values(values, draft.chart, draft.release)
            path = draft.patch_path or self.opened.in_repository(draft.release)
            rough = "with these values the file is written anew, without its comments"
            told = (
                []
                if self.opened.keeps_with(values)
                else [warning(PATCH, rough, "its aliases or layout are the reason")]
            )
            return products.patch(self.opened.text, text, path), told
        except OnboardingError as wrong:
            return None, [error(PATCH, str(wrong), "give a path from the repository's root")]

    def explanation(self, draft: Draft) -> list[explaining.Explained]:
        """Explain each object; empty if the values can't be rendered."""
        values, unreadable = self.values(draft)
        if unreadable or _badly_named(draft):
            return []
        try:
            return explaining.explain(
                draft.chart, overlaid(self.below, values), draft.release, draft.namespace, self.helm
            )
        except OnboardingError:
            return []  # the preview shows the reason

    def file(self, what: str, draft: Draft) -> File:
        """Return one of the files. Raise `OnboardingError` if it can't be made."""
        values, unreadable = self.values(draft)
        wrong = [*unreadable, *_badly_named(draft)]
        if wrong:
            raise OnboardingError(f"{wrong[0].path}: {wrong[0].message}")
        if what == "values":
            return File("values.yaml", self._values_text(draft, values))
        if what == "helmrelease":
            if self.opened.is_release and self.opened.path:
                return File(self.opened.path.name, self.opened.with_values(values, draft.chart, draft.release))
            text = products.helmrelease(values, draft.chart, draft.release, draft.namespace)
            return File(f"{draft.release}.helmrelease.yaml", text)
        if what == "rendered":
            text = helm.render(
                draft.chart, overlaid(self.below, values), draft.release, draft.namespace, self.helm
            )
            return File(f"{draft.release}.rendered.yaml", text)
        if what == "patch":
            patch, problems = self._patch(draft, values)
            if patch is None:
                raise OnboardingError(problems[0].message)
            return File(f"{draft.release}.patch", patch)
        raise OnboardingError(f"there is no file '{what}'")


def objects(rendered: str) -> list[Object]:
    """Return the rendered text, object by object."""
    found = []
    for text in re.split(r"(?m)^---[ \t]*$\n?", rendered):
        for content in helm.objects(text):
            name = str((content.get("metadata") or {}).get("name", ""))
            found.append(Object(str(content.get("kind", "")), name, text.strip("\n") + "\n"))
    return found


def _texts(known: Mapping[str, form.Field], values: dict[str, Any]) -> dict[str, str]:
    """Return the free-form values as YAML, by path."""
    free = {path: look(values, *path.split(".")) for path, each in known.items() if each.control == "yaml"}
    return {path: dump(value) for path, value in free.items() if value is not None}


def _badly_named(draft: Draft) -> list[Problem]:
    found = []
    for path, name in ((RELEASE, draft.release), (NAMESPACE, draft.namespace)):
        if not _NAME.fullmatch(name) or len(name) > _MAX_NAME[path]:
            message = f"'{name}' is no name that Kubernetes takes" if name else "there is no name"
            fix = f"lower-case letters, digits and -, a letter first, at most {_MAX_NAME[path]} characters"
            found.append(error(path, message, fix))
    return found


def _existing(topic: essentials.Topic, known: Mapping[str, form.Field]) -> essentials.Topic:
    fields, more = (tuple(each for each in part if each.path in known) for part in (topic.fields, topic.more))
    return msgspec.structs.replace(topic, fields=fields, more=more)
