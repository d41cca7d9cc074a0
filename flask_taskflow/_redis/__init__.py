"""Connections: to a server, a cluster, a primary behind Sentinel, or a private server."""
