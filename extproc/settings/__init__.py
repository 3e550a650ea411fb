"""Reads and checks the settings of the processor and of the message dumper."""
