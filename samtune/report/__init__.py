"""How is a result shown? One HTML page that holds everything it needs."""
