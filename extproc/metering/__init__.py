"""Hold, settle and record reservations, and rebuild the counters after a loss."""
