"""SUPERB tasks, one module each."""
