"""`modelyard up`: the production processes and the servers they need, as one tree on one machine."""
