"""The node agent: follows its own node's events, makes real processes match them, and tells what happened."""
