"""Hand on what another reader knows of an answer, for readers that stand around one."""

from extproc.core.answer.answer_protocol import AnswerReader
from extproc.core.quota.settlement import Settlement


class WrappingReader:
    """A reader that asks `_reader` for what it does not know better itself."""

    _reader: AnswerReader

    @property
    def output_tokens(self) -> int:
        return self._reader.output_tokens

    @property
    def input_tokens(self) -> int:
        return self._reader.input_tokens

    @property
    def overran(self) -> bool:
        return self._reader.overran

    @property
    def kept_bytes(self) -> int:
        return self._reader.kept_bytes

    def look(self) -> None:
        self._reader.look()

    def settlement(self, *, complete: bool) -> Settlement:
        return self._reader.settlement(complete=complete)
