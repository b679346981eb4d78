"""The node agent: real processes that follow their node's events."""
