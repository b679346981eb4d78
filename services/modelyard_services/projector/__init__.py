"""From the log outwards: into PostgreSQL (read model and history) and onto the public lifecycle stream.

Invariant: nothing here decides; two of these processes at once, or one killed at any moment, repeat nothing and lose
nothing.
"""
