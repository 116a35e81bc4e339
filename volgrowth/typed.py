"""What a person typed wrong on the command line, in one sentence: unknown options, missing arguments, odd values."""

from difflib import get_close_matches
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperCommand

from volgrowth.errors import UsageError
from volgrowth.wrong_settings import wrong_value

# the base class of all errors about what was typed; typer brings its own copy of click
_Mistyped: Any = typer.BadParameter.__mro__[1]


class SentenceCommand(TyperCommand):
    """A command that refuses what it cannot read as `volgrowth: ...`, like every other refusal."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except _Mistyped as error:
            kind = type(error).__name__
            if kind == "NoSuchOption":
                said = self._no_option(error.option_name)
            elif kind == "MissingParameter":
                said = self._missing(ctx, typed)
            elif kind == "BadParameter":
                said = self._bad(error)
            else:
                said = f"{self.name}: {error.message.rstrip('.')}; `volgrowth {self.name} --help`"
            raise UsageError(said) from None

    def _no_option(self, given: str) -> str:
        known = [name for parameter in self.params for name in parameter.opts if name.startswith("--")]
        near = get_close_matches(given, known, 2, 0.6)
        meant = f": did you mean {' or '.join(near)}?" if near else "."
        return f"{self.name} has no option {given}{meant} The options are {', '.join(known)}"

    def _missing(self, ctx: Any, typed: list[str]) -> str:
        """Name all that is missing, not the first alone."""
        given = self.make_parser(ctx).parse_args(args=typed)[0]
        lacking = [
            parameter.name.upper() if parameter.param_type_name == "argument" else parameter.opts[0]
            for parameter in self.params
            if parameter.required and given.get(parameter.name) in (None, ())
        ]
        some = f"{', '.join(lacking[:-1])} and {lacking[-1]}" if len(lacking) > 1 else "".join(lacking)
        return f"{self.name} needs {some}: `volgrowth {self.name} --help` shows an example"

    def _bad(self, error: Any) -> str:
        if error.param is None:
            return f"{self.name}: {error.message}"
        cause = error.__cause__
        said = wrong_value(cause.errors()[0]) if isinstance(cause, ValidationError) else error.message
        return f"{error.param.opts[0]}: {said}"
