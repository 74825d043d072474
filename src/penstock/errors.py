"""The errors that Penstock raises: what failed, then a hint about what to do."""


class PenstockError(Exception):
    """Any error that Penstock raises on purpose.

    The message says what failed, in lower case and without a period; `hint` says what can be done.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class DefinitionError(PenstockError):
    """A pipeline, schema, expression or rules file that cannot mean anything."""


class InputError(PenstockError):
    """Data from outside that does not fit its schema."""


class SettingsError(PenstockError):
    """A setting that is unknown or out of range."""


class LogError(PenstockError):
    """The log cannot do what was asked."""


class DamagedError(LogError):
    """Durable bytes are not what was written."""


class LockedError(LogError):
    """Another process is the writer of this data directory."""


class FullError(LogError):
    """There is no space left; nothing was accepted."""
