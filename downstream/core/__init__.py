"""How a task meets an upstream, its data, the training loop and the page that sums it up."""
