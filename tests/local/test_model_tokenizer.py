"""Prompt counts: the real template where it takes the conversation, a fixed overhead where it does not."""

from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.local.model.tokenizer import FALLBACK_TOKENS_PER_MESSAGE, Message, load_tokenizer

TOKENIZER = load_tokenizer()


def test_a_chat_is_counted_with_its_template():
    # <s> [INST] 1 _+ _ 1 _= ? [/INST]
    assert TOKENIZER.count_chat([Message("user", "1 + 1 =?")]) == 9


def test_a_system_prompt_costs_its_text_and_a_separator():
    user = Message("user", "ping")
    alone = TOKENIZER.count_chat([user])
    text = "You are terse."
    assert TOKENIZER.count_chat([Message("system", text), user]) > alone + len(TOKENIZER.encode(text)) - 1


def test_a_developer_counts_as_a_system():
    user = Message("user", "ping")
    counts = {TOKENIZER.count_chat([Message(role, "Be kind."), user]) for role in ("developer", "system")}
    assert len(counts) == 1


def test_what_the_template_refuses_is_counted_by_text_and_overhead():
    words = "a tool said so"
    text = len(TOKENIZER.encode(words))
    expected = 1 + text + FALLBACK_TOKENS_PER_MESSAGE
    assert TOKENIZER.count_chat([Message("tool", words)]) == expected
    assert TOKENIZER.count_chat([Message("user", words, plain=False)]) == expected
    assert TOKENIZER.count_chat([Message("assistant", words)]) == expected


def test_a_bare_text_is_counted_with_its_begin_marker():
    assert TOKENIZER.count_text("1 + 1 =?") == len(TOKENIZER.encode("1 + 1 =?")) + 1


def test_a_text_too_long_for_the_splitting_pattern_is_counted_all_the_same():
    blanks = " " * 1_000_000
    tokens = TOKENIZER.encode(blanks)
    assert sum(len(TOKENIZER.piece(token)) for token in tokens) == len(blanks)
    assert TOKENIZER.count_chat([Message("user", blanks)]) > len(tokens)


roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", ""])
messages = st.lists(st.builds(Message, roles, st.text(max_size=40), st.booleans()), min_size=1, max_size=6)


@given(messages)
@settings(deadline=None)
def test_any_conversation_can_be_counted(conversation):
    texts = sum(len(TOKENIZER.encode(message.text)) for message in conversation)
    # Joining turns may merge some tokens or trim blanks, but never loses the order of magnitude.
    assert 1 <= TOKENIZER.count_chat(conversation) <= 1 + texts + 8 * len(conversation)


@given(st.text(max_size=80))
@settings(deadline=None)
def test_pieces_put_a_text_together_again(text):
    assert b"".join(map(TOKENIZER.piece, TOKENIZER.encode(text))).decode() == text
