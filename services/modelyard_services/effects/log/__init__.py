"""The append-only log: guarded atomic appends and the ordered, gapless reader."""
