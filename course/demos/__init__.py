"""What the notebooks show and measure: tokens, plots, servers next to a notebook, copies of a model."""
