"""Leases: which replica serves a request, and until when."""
