"""Where do images come from? Decoding, cuts, checks and loaders that all tasks share."""
