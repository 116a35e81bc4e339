"""Images that are objects of the program that audits them: they are written down, and read as any data set."""
