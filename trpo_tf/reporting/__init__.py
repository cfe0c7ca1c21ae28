"""What a run says of itself: metrics, progress, summary."""
