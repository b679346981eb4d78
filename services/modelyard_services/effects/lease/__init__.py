"""Who acts where several processes could: one lease, in one cell that is replaced by compare-and-set."""
