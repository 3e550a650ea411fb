"""Declares what the application needs of the world, as protocols; one idea a module."""
