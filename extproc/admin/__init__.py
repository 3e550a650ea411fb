"""What an operator does: the use cases behind the CLI."""
