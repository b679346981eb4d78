"""What workers report, decided: registration and facts by request and reply."""
