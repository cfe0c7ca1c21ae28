"""HTTP: connections, routes and responses."""
