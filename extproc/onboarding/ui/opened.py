"""Hold the file that the form was opened with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extproc.onboarding import files, reading
from extproc.onboarding.editing import Editor
from extproc.onboarding.errors import OnboardingError
from extproc.onboarding.ui import products


@dataclass(frozen=True, slots=True)
class Opened:
    """Hold a file, or none. `model` is None if the file is empty, `text` if it doesn't exist."""

    path: Path | None = None
    text: str | None = None
    model: files.Model | None = None

    @property
    def values(self) -> dict[str, Any]:
        return self.model.values if self.model else {}

    @property
    def is_release(self) -> bool:
        return self.model is not None and self.model.helmrelease

    def changed(self) -> bool:
        """Return whether another program has written the file meanwhile."""
        return self.path is not None and self.text != _text(self.path)

    def keeps_with(self, values: dict[str, Any]) -> bool:
        """Return whether the file's comments can be kept with these values."""
        return self.model is None or self._edited(self.model, values) is not None

    def with_values(self, values: dict[str, Any], chart: str, release: str) -> str:
        """Return the file's text with these values. Raise `OnboardingError` for a HelmRelease that can't be
        edited.
        """
        fresh = products.values_file(values, chart, release)
        if self.model is None:
            return (self.text or "") + fresh
        text = self._edited(self.model, values)
        if text is not None:
            return text
        if self.is_release:
            raise OnboardingError(
                f"{self.path} can't be edited without losing more than its values (anchors or aliases, say): "
                "take values.yaml, and put them in by hand"
            )
        return fresh

    def _edited(self, model: files.Model, values: dict[str, Any]) -> str | None:
        """Return the file's text, edited; None where that takes more than edits."""
        editor = Editor(self.text or "", model.source, model.chart, model.release)
        try:
            editor.become(values)
        except OnboardingError:
            return None
        return editor.text

    def in_repository(self, release: str) -> str:
        """Return its path from the root of its Git repository, if it is in one."""
        if self.path is None:
            return f"{release}.values.yaml"
        path = self.path.absolute()
        for folder in path.parents:
            if (folder / ".git").exists():
                return path.relative_to(folder).as_posix()
        return path.name


def open_file(path: Path | None, chart: str | None, release: str | None) -> Opened:
    """Open a file. Raise `OnboardingError` if it is neither a values file nor a Flux HelmRelease."""
    if path is None:
        return Opened()
    if str(path) == files.STDIN:
        raise OnboardingError("the form is opened with a file's name, not with stdin")
    text = _text(path)
    if text is None or not reading.compose(text.removeprefix("\ufeff"), str(path)):
        return Opened(path, text)
    return Opened(path, text, files.one(text, str(path), chart, release))


def _text(path: Path) -> str | None:
    return files.load(str(path)) if path.exists() else None
