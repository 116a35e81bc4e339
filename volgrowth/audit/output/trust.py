"""Whether a command may use the model and the data sets that an output names.

A manifest names a model, which may be code that is run, and data sets, which are opened and shown. Somebody else's
manifest may name anything. So they are used only if this account ran `volgrowth audit` on the output, where the user
named both, or if the user says that the output is trusted.
"""

from typing import Any

from volgrowth.audit.output.manifest import MANIFEST
from volgrowth.errors import OutputError
from volgrowth.storage.made_here import made_here, remember_made
from volgrowth.storage.store import Store


def remember_output(store: Store) -> None:
    """Note that this account audited into an output, with the model and the data sets that its manifest names."""
    remember_made(store.read_json(MANIFEST))


def refuse_strangers(url: str, manifest: dict[str, Any], trusted: bool, purpose: str) -> None:
    """Raise an OutputError if the model and the data sets that a manifest names must not be used.

    Args:
        url: the output.
        manifest: its manifest.
        trusted: True if the user said that the output is trusted.
        purpose: what they are wanted for, such as "drawing samples".
    """
    if trusted or made_here(manifest):
        return
    model, data, held_out = (manifest.get(name) or {} for name in ("model", "data", "holdout"))
    named = [f"the model {model.get('name')}", f"the data {data.get('name')}"]
    if held_out:
        named.append(f"the held-out data {held_out.get('name')}")
    raise OutputError(
        f"{url} was not audited by this account on this machine, and {purpose} would use what it names "
        f"({', '.join(named)}): if you trust who made it, add --trust-output (in Python trust_output=True), or repeat "
        f"its `volgrowth audit`, which names them"
    )
