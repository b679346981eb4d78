"""The real NATS server and the real PostgreSQL as our own children: no Docker, no root, no set-up.

Invariant: nothing that we start outlives us, and nothing that it stored is lost with it.
"""
