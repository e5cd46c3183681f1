"""Which other programs can load a tuned model? One module for each format."""
