"""SUPERB as a whole: what is run for which upstream, what an upstream costs, and the report of it all."""
