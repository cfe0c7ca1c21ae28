"""What is counted: series, drift, Prometheus' text."""
