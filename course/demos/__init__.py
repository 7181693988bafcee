"""What the notebooks show and measure: tokens, plots, servers beside a notebook, copies of a model."""
