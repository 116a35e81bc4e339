"""Files in a folder or an object store: reading, publishing whole or not at all, errors in one sentence."""
