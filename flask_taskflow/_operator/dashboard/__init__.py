"""The dashboard: the fleet in a browser. It works without JavaScript."""
