"""How do runs compare? Reads only."""
