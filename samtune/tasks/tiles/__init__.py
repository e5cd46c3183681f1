"""How is a picture answered that is too large for the input frame? Tile by tile, without seams."""
