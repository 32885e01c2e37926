"""Hidden states of a frozen upstream, computed once: files (store), what fills them, and what a run is served."""
