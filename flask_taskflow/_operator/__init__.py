"""Who runs the fleet: the commands, and what they look at."""
