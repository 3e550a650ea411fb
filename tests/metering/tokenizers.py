"""Tokenizers for a counting process in the tests."""

import time

from extproc.metering.prompt_counter import counting
from extproc.metering.prompt_tokenizer import Tokenizers


def slow(text):
    time.sleep(text.count("wait") * 0.2)
    return len(text.split())


def failing(text):
    raise ValueError(text)


TOKENIZERS = Tokenizers([("bad", failing), ("*", slow)], 256 << 10)


def prepared():
    return counting(TOKENIZERS)
