"""Real faults on real processes: the promises of docs/reliability.md, each with its figure."""
