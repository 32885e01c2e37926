"""Figures of merit, from predictions and references alone."""
