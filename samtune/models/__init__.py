"""What is tuned? Stock networks, each with what samtune knows about it."""
