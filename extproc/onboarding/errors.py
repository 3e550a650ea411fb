"""What a model owner gets wrong, or what is missing on the machine."""


class OnboardingError(Exception):
    """It can't be done; the message says what is wrong and what helps."""


class HelmMissing(OnboardingError):  # noqa: N818 - an outcome that callers tell apart
    """There is no helm to render with; the message says how to get one."""


class HelmRefused(OnboardingError):  # noqa: N818 - likewise
    """Helm, the chart or its schema refuses the values; the message is theirs, without their noise."""


class PartMissing(OnboardingError):  # noqa: N818 - likewise
    """A Python package of the extra `models` is missing."""
