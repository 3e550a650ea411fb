"""Define the errors of a model owner's input, and of missing programs or packages."""


class OnboardingError(Exception):
    """Report that it can't be done; the message says what is wrong and how to correct it."""


class HelmMissing(OnboardingError):  # noqa: N818 - an outcome that callers tell apart
    """Report that there is no helm to render with; the message says how to get one."""


class HelmRefused(OnboardingError):  # noqa: N818 - likewise
    """Report that Helm, the chart or its schema refuses the values; the message is theirs, shortened."""


class PartMissing(OnboardingError):  # noqa: N818 - likewise
    """Report that a Python package of the extra `models` is missing."""
