"""Processes: the start, the supervisor, and one worker."""
