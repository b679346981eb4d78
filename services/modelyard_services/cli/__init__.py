"""The command line: an ordinary client of the API, and the starter of each process."""
