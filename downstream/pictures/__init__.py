"""Pictures that tasks and runs leave, for people who look rather than read."""
