"""Holds, settles and records reservations, and rebuilds the counters after a loss."""
