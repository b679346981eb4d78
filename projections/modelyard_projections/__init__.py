"""What is true: folds of the log, in memory and in PostgreSQL. Everything here can be thrown away and made anew."""
