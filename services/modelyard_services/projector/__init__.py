"""The PostgreSQL read model and the public lifecycle stream."""
