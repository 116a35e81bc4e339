import pytest

from volgrowth.errors import DataError, OutputError
from volgrowth.storage.failures import explained, is_absent, no_bucket, store_reason


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class NoSuchBucket(Exception):  # noqa: N818 - the name that botocore gives it
    pass


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("Parameter validation failed:\nInvalid bucket name."), "Invalid bucket name"),
        (KeyError("name"), "KeyError 'name'"),
        (TimeoutError(), "TimeoutError"),
        (ValueError("word " * 100), "word " * 39 + "..."),
    ],
)
def test_a_reason_is_one_line_in_the_words_of_the_store(error: Exception, reason: str) -> None:
    assert store_reason(error) == reason


@pytest.mark.parametrize(
    ("error", "url", "fix"),
    [
        (chained(FileNotFoundError("x"), NoSuchBucket()), "s3://bucket/a", "create bucket, or correct the name"),
        (PermissionError("Forbidden"), "gs://bucket/a", "renew the .*; they are taken from GOOGLE_APPLICATION_CRED"),
        (OSError("Bad Request"), "s3://bucket/a", "renew the .*; they are taken from AWS_ACCESS_KEY_ID"),
        (PermissionError("x"), "ftp://host/a", "renew the .* the variables that this store reads"),
        (ConnectionError("x"), "s3://bucket/a", "check the endpoint"),
        (OSError("x"), "s3://bucket/a", "try again"),
        (PermissionError("x"), "/folder/a", "try again"),
    ],
)
def test_a_sentence_ends_in_the_fix(error: Exception, url: str, fix: str) -> None:
    with (
        pytest.raises(OutputError, match=rf"^{url} cannot be read \(.*\): {fix}"),
        explained(OutputError, f"{url} cannot be read", url, "try again"),
    ):
        raise error


def test_errors_of_volgrowth_and_those_that_are_asked_for_pass() -> None:
    for error in (DataError("as it is"), FileNotFoundError("as it is")):
        with (
            pytest.raises(type(error), match=r"^as it is$"),
            explained(OutputError, "w", "u", "f", (FileNotFoundError,)),
        ):
            raise error
    with pytest.raises(OutputError), explained(OutputError, "w", "s3://u", "f", (FileNotFoundError,)):
        raise chained(FileNotFoundError("x"), NoSuchBucket())


def test_a_missing_bucket_is_no_missing_file() -> None:
    missing = OSError("The specified bucket does not exist")
    assert is_absent(FileNotFoundError())
    assert is_absent(NotADirectoryError())
    assert not is_absent(OSError())
    assert no_bucket(missing)
    assert not is_absent(chained(FileNotFoundError(), missing))
