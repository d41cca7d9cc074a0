"""Who comes by HTTP: routes, what they take and answer, and their description."""
