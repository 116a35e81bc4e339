"""Errors that a person reads: one sentence with what was given, what was expected, and the fix."""

from volgrowth.credentials import redacted


class VolgrowthError(Exception):
    """Something the user can mend. The command line prints it without a traceback and exits with 2."""


class UsageError(VolgrowthError):
    """An option or a setting that makes no sense."""


class DataError(VolgrowthError):
    """A data set that cannot be opened, or that is not what was frozen in the manifest."""


class ModelError(VolgrowthError):
    """A model that cannot be loaded as a denoiser."""


class OutputError(VolgrowthError):
    """An OUT that cannot be written, or that holds another audit."""


class DamagedError(OutputError):
    """A file of an OUT that was cut off or changed since it was written.

    Attributes:
        name: its name under OUT.
        path: its path or URL.
        why: what is wrong with it.
    """

    def __init__(self, name: str, path: str, why: str):
        super().__init__(f"{path} is damaged ({why}): the command that wrote it makes it again, if repeated")
        self.name, self.path, self.why = name, path, why

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.name, self.path, self.why)


class EngineError(VolgrowthError):
    """Workers that could not start or went on failing; what was published stays, and a rerun resumes."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or the name of its class if it has none."""
    return redacted((str(error).strip().splitlines() or [type(error).__name__])[0].strip(" ."))


def kind_and_line(error: BaseException) -> str:
    """Return the class of an error and the first line of its message, such as `ValueError: no such file`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redacted(f"{type(error).__name__}: {lines[0]}") if lines else type(error).__name__
