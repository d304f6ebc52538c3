"""The only exceptions users meet: each message says what is wrong, with name and value, and what to do."""


class LrzipError(Exception):
    """Something lrzip could not do; the message is one line meant for people."""


class UsageError(LrzipError):
    """Options that make no sense, whatever the file holds."""


class UnsupportedCheckpoint(LrzipError):
    """A file that lrzip cannot read, named as what it is."""


class UntrustedFile(LrzipError):
    """A file that would run code if it were read in full."""


class NotCompared(LrzipError):
    """Outputs that cannot be compared; the message says why."""


class PlanMismatch(LrzipError):
    """A plan that does not fit its checkpoint."""


class UnknownName(LrzipError):
    """A name that stands for nothing: a layer, a glob, an entry of a registry."""


class OutputExists(LrzipError):
    """An output that would overwrite a file."""
