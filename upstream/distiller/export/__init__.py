"""A student in the forms in which others use it, each proved by the numbers that it gives."""
