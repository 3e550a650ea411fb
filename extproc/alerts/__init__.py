"""Send alerts: count and log each one, and post signed webhooks. No request waits for any of it."""
