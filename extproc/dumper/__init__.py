"""Receive the CloudEvents of KServe's inference logger, and print or store them."""
