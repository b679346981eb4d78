"""Every touch of the world: log, database, processes, clock, network."""
