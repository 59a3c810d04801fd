"""Adapters that turn arrays, live models and servers into traces or observations."""
