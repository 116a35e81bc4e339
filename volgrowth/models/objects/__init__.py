"""Models that are objects already: networks of other libraries become denoisers, and are audited where they are."""
