"""Declare the application's needs as protocols; one idea per module."""
