"""Wait: with backoff between attempts, between periodic steps, and for events with a timeout. Imports no other
package.
"""
