"""The faults of a benchmark that a person can mend."""


class CannotRunError(Exception):
    """Report that the benchmark can't run on this machine; the message says what is missing."""
