"""What the checks say."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "WARN", "FAIL", "skip"]


@dataclass(frozen=True)
class Check:
    """One line: what was seen and, unless that is well, what was expected and how to mend it."""

    status: Status
    seen: str
    mend: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.status:4}  {self.name:12}  {self.seen}" + (f"; {self.mend}" if self.mend else "")


@dataclass(frozen=True)
class Report:
    """What was found. `ok` is that nothing failed; printed, there is a line for each check and one for all."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether an audit can be believed, as far as can be seen from here."""
        return not self.named("FAIL")

    def named(self, status: Status) -> list[str]:
        """Names of the checks that ended so."""
        return [check.name for check in self.checks if check.status == status]

    def __str__(self) -> str:
        said = "fit for an audit" if self.ok else f"not fit for an audit: {', '.join(self.named('FAIL'))}"
        looks = f"; look at {', '.join(self.named('WARN'))}" if self.named("WARN") else ""
        return "\n".join([*map(str, self.checks), said + looks])


def judged(fine: bool, seen: str, mend: str, otherwise: Status = "FAIL") -> Check:
    """ok, without a word of how to mend it, or what it is otherwise."""
    return Check("ok", seen) if fine else Check(otherwise, seen, mend)


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:160]
