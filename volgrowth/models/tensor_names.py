"""Names of tensors as the training code's own network has them, whatever wrapped the network when it was saved."""

WRAPPERS = ("_orig_mod", "module")
"""Names that torch.compile and DistributedDataParallel put before those of the network that they wrap."""


def plain_name(name: str) -> str:
    """Return a tensor's name without the wrappers of torch.compile and DistributedDataParallel, wherever they stand."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
