"""Which config fits a folder? What is in it, what follows from that, and a sheet of samples."""
