"""Every test runs with the types and shapes of the public numerics checked on each call."""

from jaxtyping import install_import_hook

install_import_hook("volgrowth.numerics", "beartype.beartype")
