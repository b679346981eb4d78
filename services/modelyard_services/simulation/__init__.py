"""The whole scheduler in memory, on a simulated clock: stories as text, and anything at random. Pure."""
