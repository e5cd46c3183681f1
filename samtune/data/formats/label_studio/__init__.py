"""Label Studio: its tasks in JSON, and the brushes in them."""
