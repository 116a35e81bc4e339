"""Faults that are done to a small audit for real, and what comes out beside an audit that nobody disturbed."""
