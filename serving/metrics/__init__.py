"""Metrics: counters and histograms, drift of observations, and Prometheus' text format."""
