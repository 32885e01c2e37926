"""Upstream and head of a run as one model, proved by what it answers."""
