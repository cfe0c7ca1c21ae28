"""HTTP: connections, routes, and what they answer."""
