"""The outcome of an image that cannot be used."""

from volgrowth.records import Status


class BadImage(Exception):  # noqa: N818 - the outcome of a row more than an error
    """An image that cannot be used.

    Args:
        status: the status of its row.
        message: a short reason.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"
