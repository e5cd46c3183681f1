"""Which parameters matter? Gradients of a loss at the pretrained weights, summed over training images."""
