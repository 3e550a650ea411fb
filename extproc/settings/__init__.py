"""Read and check the settings of the processor and of the message dumper."""
