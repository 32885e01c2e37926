"""Models on top of an upstream's features: tensors in, tensors out."""
