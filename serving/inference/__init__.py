"""From a decoded request to a run: bounds, drift, batching."""
