"""What lies in the output folder of an audit."""
