"""Which maps of objects does a folder hold? Index pictures, one mask per object, annotations."""
