"""Edit a canary in the values file: start, shift, promote, abort.

The functions edit text: everything else stays byte for byte, including comments, order, quotes and line ends. The
values may be a plain values file or the `spec.values` of a Flux HelmRelease. If a text has several, `release`
selects one.
"""

import re
from typing import Any, Final

from extproc.onboarding.charts import PLAIN
from extproc.onboarding.editing import Editor
from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.facts import CONTAINERS, MODEL
from extproc.onboarding.files import CANARY_KEYS
from extproc.onboarding.layering import Path, look, spell
from extproc.onboarding.problem import Level
from extproc.onboarding.rules_serving import storage_problems

PERCENT: Final = 100
_LOAD: Final[Path] = ("primaryLoad",)


def start(
    text: str,
    *,
    storage: str | None = None,
    image: str | None = None,
    tag: str | None = None,
    primary_load: int = 90,
    release: str | None = None,
    chart: str | None = None,
    source: str = "values",
) -> str:
    """Return the text with a canary: another model, another image, or another tag of the same image.

    Raise `OnboardingError` if a canary runs already, or if the arguments contradict each other.
    """
    if storage is None and image is None and tag is None:
        raise OnboardingError("what should the canary be? Give its model, its image or its tag")
    if image is not None and tag is not None:
        raise OnboardingError("an image has its tag: give one of the two")
    editor = Editor(text, source, chart, release)
    _bounded(primary_load)
    if editor.model.chart == PLAIN and editor.model.told:
        raise OnboardingError(
            f"{source}: a canary needs the chart kserve-general, this is kserve-model. Its values are the "
            "same, but not its InferenceService: when the chart is changed the model is deployed anew"
        )
    running = canary_of(editor.model.values)
    if running:
        named = ", ".join(f"{spell(path)}: {value}" for path, value in running.items())
        raise OnboardingError(f"{source}: a canary runs already ({named}): promote or abort it first")
    if storage is not None:
        _start_storage(editor, storage, source)
    if image is not None:
        _start_image(editor, image, source)
    if tag is not None:
        _start_tag(editor, tag, source)
    editor.put(_LOAD, primary_load, before="inferenceservice")
    return editor.text


def shift(
    text: str,
    primary_load: int,
    *,
    release: str | None = None,
    chart: str | None = None,
    source: str = "values",
) -> str:
    """Return the text with this percentage of traffic to the primary, 0 to 100. Raise `OnboardingError`."""
    editor = Editor(text, source, chart, release)
    _bounded(primary_load)
    _running(editor, source)
    editor.put(_LOAD, primary_load, before="inferenceservice")
    return editor.text


def promote(text: str, *, release: str | None = None, chart: str | None = None, source: str = "values") -> str:
    """Return the text with the canary's model and image as the primary's, and no canary. Raise
    `OnboardingError`.
    """
    editor = Editor(text, source, chart, release)
    running = _running(editor, source)
    values = editor.model.values
    for holder in dict.fromkeys(path[:-1] for path in running):
        storage, image, tag = (look(values, *holder, key) for key in CANARY_KEYS)
        if storage:
            editor.put((*holder, "storageUri"), str(storage), beside=("newStorageUri",))
        if image or tag:
            before = str(image or look(values, *holder, "image") or "")
            if not before:
                raise OnboardingError(
                    f"{source}: {spell((*holder, 'newImageTag'))} is a tag of which image? Give image"
                )
            now = retagged(before, str(tag)) if tag else before
            editor.put((*holder, "image"), now, beside=("newImage", "newImageTag"))
    _clear(editor)
    return editor.text


def abort(text: str, *, release: str | None = None, chart: str | None = None, source: str = "values") -> str:
    """Return the text without the canary. Raise `OnboardingError` if none runs."""
    editor = Editor(text, source, chart, release)
    _running(editor, source)
    _clear(editor)
    return editor.text


def canary_of(values: Any) -> dict[Path, str]:
    """Return the canary's values that are set: path -> value."""
    containers = look(values, *CONTAINERS)
    count = len(containers) if isinstance(containers, list) else 0
    holders: list[Path] = [MODEL, *((*CONTAINERS, index) for index in range(count))]
    found = {(*holder, key): look(values, *holder, key) for holder in holders for key in CANARY_KEYS}
    return {path: str(value) for path, value in found.items() if value}


def retagged(image: str, tag: str) -> str:
    """Return the image with another tag, or digest (sha256:...), instead of its own. A registry's port stays."""
    name = re.sub(r":[^/]*$", "", image.partition("@")[0])
    return f"{name}{'@' if tag.startswith('sha256:') else ':'}{tag}"


def is_image(text: str) -> bool:
    """Return whether the text has the form of an image's name."""
    return re.fullmatch(r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?", text) is not None


def _start_storage(editor: Editor, storage: str, source: str) -> None:
    present = look(editor.model.values, *MODEL, "storageUri")
    if not present and not editor.model.partial:
        raise OnboardingError(f"{source}: {spell((*MODEL, 'storageUri'))} is missing: there is no primary's model")
    if storage == present:
        raise OnboardingError(f"{source}: this is the primary's model already: {storage}")
    wrong = [each for each in storage_problems("", storage) if each.level is Level.ERROR]
    if wrong:
        raise OnboardingError(f"{wrong[0].message}: {wrong[0].fix}")
    editor.put((*MODEL, "newStorageUri"), storage, beside=("storageUri",))


def _start_image(editor: Editor, image: str, source: str) -> None:
    holder = _image_holder(editor)
    if image == look(editor.model.values, *holder, "image"):
        raise OnboardingError(f"{source}: this is the primary's image already: {image}")
    if not is_image(image):
        raise OnboardingError(f"{image[:80]!r} is no image, such as registry.example.com/qwen:v2")
    editor.put((*holder, "newImage"), image, beside=("image", "storageUri", "runtime"))


def _start_tag(editor: Editor, tag: str, source: str) -> None:
    holder = _image_holder(editor)
    image = look(editor.model.values, *holder, "image")
    if not image and not editor.model.partial:
        raise OnboardingError(
            f"{source}: a tag of which image? {spell((*holder, 'image'))} is missing; give an image"
        )
    if not re.fullmatch(r"[\w][\w.-]{0,127}|sha256:[0-9a-f]{64}", tag):
        raise OnboardingError(f"{tag[:80]!r} is no tag, such as v2")
    if image and retagged(str(image), tag) == image:
        raise OnboardingError(f"{source}: this is the primary's tag already: {tag}")
    editor.put((*holder, "newImageTag"), tag, beside=("image",))


def _image_holder(editor: Editor) -> Path:
    """Return the first container if there are containers, as the chart does; otherwise the model."""
    return (*CONTAINERS, 0) if look(editor.model.values, *CONTAINERS) else MODEL


def _bounded(primary_load: int) -> None:
    if not 0 <= primary_load <= PERCENT:
        raise OnboardingError(f"the primary's load is a percentage, 0 to 100, not {primary_load}")


def _running(editor: Editor, source: str) -> dict[Path, str]:
    running = canary_of(editor.model.values)
    if not running:
        raise OnboardingError(f"{source}: no canary runs: start one first")
    return running


def _clear(editor: Editor) -> None:
    for path in canary_of(editor.model.values):
        editor.drop(path)
    if "primaryLoad" in editor.model.values:
        editor.put(_LOAD, PERCENT, before="inferenceservice")
