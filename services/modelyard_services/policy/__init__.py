"""What should be: pure decisions. No clock, no I/O, no randomness."""
