"""Read what a person gives: files and YAML, within bounds."""
