"""Count real tokens: with the Tekken tokenizer and its chat template, as shipped by mistral-common."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

VOCABULARY = "tekken_240911.json"

# Extra tokens of a turn if the template refuses the conversation: about the cost of the [INST] and [/INST]
# markers, the end-of-sequence token and a role name.
FALLBACK_TOKENS_PER_MESSAGE = 4

# Characters; see SampleTokenizer.encode.
_SLICE = 8192

_TEMPLATE_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Message:
    """Hold one turn of a conversation, reduced to what is counted.

    Attributes:
        role: The role as the client wrote it.
        text: All its text, content parts joined by newlines.
        plain: Whether text is all it has; tool calls and pictures do not go through the template.
    """

    role: str
    text: str
    plain: bool = True


class SampleTokenizer:
    """Turn text into Tekken tokens and back into bytes. Thread-safe."""

    def __init__(self, mistral: Any) -> None:
        self._mistral = mistral
        self._tekken: Any = mistral.instruct_tokenizer.tokenizer
        self._bos: int = self._tekken.bos_id
        self.eos: int = self._tekken.eos_id
        self.size: int = self._tekken.n_words

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a bare text, without begin or end markers."""
        try:
            return self._encode(text)
        except ValueError:
            # On a million blanks, for example, the splitting pattern backtracks too far. Slices avoid that, but
            # the count may differ by a token or so at each boundary.
            slices = (text[at : at + _SLICE] for at in range(0, len(text), _SLICE))
            return [token for part in slices for token in self._encode(part)]

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tekken.encode(text, bos=False, eos=False)
        return tokens

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token; they need not be whole characters."""
        piece: bytes = self._tekken.id_to_byte_piece(token)
        return piece

    def decode(self, tokens: "Sequence[int]") -> str:
        """Return the text of tokens, each from 0 to below `size`; markers have none."""
        return b"".join(map(self.piece, tokens)).decode(errors="replace")

    def text_tokens(self, text: str) -> list[int]:
        """Return the prompt of a bare completion: the begin marker and its text."""
        return [self._bos, *self.encode(text)]

    def chat_tokens(self, messages: "Sequence[Message]") -> list[int]:
        """Return the prompt of a conversation, the chat template included. Never raises on odd input."""
        if all(message.plain and message.role in _TEMPLATE_ROLES for message in messages):
            from mistral_common.exceptions import MistralCommonException

            try:
                return list(self._mistral.encode_chat_completion(_template_request(messages)).tokens)
            except (MistralCommonException, ValueError):
                # The template requires turns to alternate and to end with the user's.
                pass
        turns = ([*self.encode(message.text), *[self.eos] * FALLBACK_TOKENS_PER_MESSAGE] for message in messages)
        return [self._bos, *chain.from_iterable(turns)]

    def count_text(self, text: str) -> int:
        """Return the prompt tokens of a bare completion."""
        return len(self.text_tokens(text))

    def count_chat(self, messages: "Sequence[Message]") -> int:
        """Return the prompt tokens of a conversation."""
        return len(self.chat_tokens(messages))


def _template_request(messages: "Sequence[Message]") -> Any:
    from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    kinds: dict[str, Any] = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
    return ChatCompletionRequest(
        messages=[kinds[_TEMPLATE_ROLES[message.role]](content=message.text) for message in messages]
    )


@lru_cache(maxsize=1)
def load_tokenizer() -> SampleTokenizer:
    """Return the tokenizer, loaded once per process (about a second and 200 MB).

    Raises:
        ImportError: mistral-common is not installed.
    """
    from importlib.resources import as_file, files

    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    with as_file(files("mistral_common") / "data" / VOCABULARY) as path:
        return SampleTokenizer(MistralTokenizer.from_file(str(path)))
