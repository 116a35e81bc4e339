"""The audit's bookkeeping and its engine: plan, scorer, actors, driver, fragments."""
