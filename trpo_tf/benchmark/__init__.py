"""Benchmarks: suites of training runs, side by side in processes of their own, and a report of how well they did."""
