"""How good is it? Pure functions from a prediction and a truth to a number, and the base of all reports."""
