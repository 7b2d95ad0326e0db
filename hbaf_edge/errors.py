"""The exceptions that hbaf_edge raises. Their messages name what came, what is accepted, and what to do."""


class HBAFError(Exception):
    """Base class of all errors that hbaf_edge raises."""


class InputError(HBAFError, ValueError):
    """Audio, text or an argument cannot be used. The conversation is as it was before the call."""


class BundleError(HBAFError):
    """A model bundle is missing, damaged, altered, or in a format that this version cannot read."""


class StateError(HBAFError):
    """A saved conversation cannot be written, read or continued."""


class BackendError(HBAFError, RuntimeError):
    """The execution provider is unknown, cannot run here, or failed; or the runtime cannot take the call."""
