"""The results of the checks: one line for each, and the report of all."""

from dataclasses import dataclass
from typing import Literal

CheckStatus = Literal["ok", "WARN", "FAIL", "skip"]


@dataclass(frozen=True)
class DenoiserCheck:
    """The result of one check.

    Attributes:
        status: ok, WARN, FAIL or skip.
        seen: what the check measured.
        mend: what it expected and how to get there; empty if the check passed.
        name: the name of the check.
    """

    status: CheckStatus
    seen: str
    mend: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.status:4}  {self.name:12}  {self.seen}" + (f"; {self.mend}" if self.mend else "")


@dataclass(frozen=True)
class DenoiserReport:
    """The results of all checks. Printed, it has one line per check and a last line with the verdict.

    Attributes:
        checks: the results, in the order in which the checks ran.
    """

    checks: tuple[DenoiserCheck, ...]

    @property
    def ok(self) -> bool:
        """True if no check failed; warnings do not count."""
        return not self.named("FAIL")

    def named(self, status: CheckStatus) -> list[str]:
        """Return the names of the checks that ended with `status`."""
        return [check.name for check in self.checks if check.status == status]

    def __str__(self) -> str:
        said = "fit for an audit" if self.ok else f"not fit for an audit: {', '.join(self.named('FAIL'))}"
        looks = f"; look at {', '.join(self.named('WARN'))}" if self.named("WARN") else ""
        return "\n".join([*map(str, self.checks), said + looks])


def failure(seen: str, mend: str) -> DenoiserCheck:
    """Return a check that failed."""
    return DenoiserCheck("FAIL", seen, mend)


def judged(fine: bool, seen: str, mend: str, otherwise: CheckStatus = "FAIL") -> DenoiserCheck:
    """Return a check that is ok if `fine` is true, and that has status `otherwise` and the advice `mend` if not."""
    return DenoiserCheck("ok", seen) if fine else DenoiserCheck(otherwise, seen, mend)
