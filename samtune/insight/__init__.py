"""What does a selection look like? Where it lies, how much of it is noise, what another draw would select."""
