"""The exceptions this package raises on purpose; their texts name what came, what is accepted and how to mend it."""


class HBAFError(Exception):
    """Base of every error raised on purpose by hbaf_edge."""


class InputError(HBAFError, ValueError):
    """Audio, text or an argument cannot be used. The conversation is as it was before the call."""


class BundleError(HBAFError):
    """A model bundle is missing, damaged, altered or of a format this version cannot read."""


class StateError(HBAFError):
    """A saved conversation cannot be written, or cannot be gone on with."""


class BackendError(HBAFError, RuntimeError):
    """The requested execution provider is unknown or cannot run here."""
