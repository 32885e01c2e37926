"""Corpora in their official layouts, and manifests: each gives utterances by split."""
