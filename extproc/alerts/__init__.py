"""Alerts on their way out: a metric, a log line, and signed webhooks that nothing waits for."""
