"""A package, so that its helpers and module names meet no others."""
