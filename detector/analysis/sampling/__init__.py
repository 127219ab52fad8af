"""Where a network looks for one place: sampled places and effective receptive field."""
