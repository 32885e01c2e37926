"""Upstreams of this package."""
