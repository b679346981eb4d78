"""Shared support for tests."""
