"""The control API: HTTP queries and commands under /api/v1."""
