"""Say who changes what and why, and what a change has done: the form that all writes share."""

from dataclasses import dataclass
from typing import Final

from extproc.admin.errors import AdminError
from extproc.admin.views import TenantView
from extproc.ports.audit import Actor

MAX_NOTE_CHARS: Final = 1000


@dataclass(frozen=True, slots=True)
class FieldChange:
    """Describe one field before and after, in JSON form; None: absent."""

    field: str
    before: object
    after: object


@dataclass(frozen=True, slots=True)
class Change:
    """Say who makes a change, why (`note`), and on which version. Raise `AdminError` for a note that is no text.

    With `if_version` (0: no document, or one without a version) the change applies to that version only; otherwise
    it is made on the present document. With `dry_run` nothing is written.
    """

    actor: Actor
    note: str | None = None
    if_version: int | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        note = self.note
        if note is not None and not (note.strip() and note.isprintable() and len(note) <= MAX_NOTE_CHARS):
            raise AdminError(f"the note must be printable text of 1 to {MAX_NOTE_CHARS} characters")
        if self.if_version is not None and self.if_version < 0:
            raise AdminError("the version must be 0 or more")


@dataclass(frozen=True, slots=True)
class Changed:
    """Describe what a write has done, or would do (`dry_run`).

    `version` is the document's version after it, `view` the tenant after it; None: deleted. `changes` is empty if
    the document already was as wanted; then nothing was written.
    """

    tenant: str
    created: bool
    version: int | None
    changes: tuple[FieldChange, ...]
    view: TenantView | None
    dry_run: bool = False
