"""What does a run do? The settings: their keys, bounds and defaults, and how YAML becomes them."""
