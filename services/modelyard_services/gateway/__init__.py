"""The OpenAI-compatible gateway under /v1."""
