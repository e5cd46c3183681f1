"""Classification: images with one class each."""
