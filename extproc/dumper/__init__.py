"""The message dumper: takes the CloudEvents of KServe's inference logger, and prints or stores them."""
