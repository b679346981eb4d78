"""What happened: the events of modelyard, their wire form and their addresses. Pure: msgspec and nothing else."""
