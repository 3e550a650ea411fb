"""Answer as a Redis server in this process: the commands that the adapter and its scripts use, by a given clock."""
