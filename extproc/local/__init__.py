"""Run the embedded stack for a laptop: real parts, all of them on the loopback interface."""
