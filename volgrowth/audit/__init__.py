"""An audit: its output folder, its workers, their measures, and the engine that runs them."""
