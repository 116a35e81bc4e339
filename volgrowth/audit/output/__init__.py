"""The files in the output folder of an audit, and how they are read and written."""
