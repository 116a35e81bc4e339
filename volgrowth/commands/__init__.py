"""One module for each verb of the command line; each reads as its stages in order."""
