"""Several classes: which one is each pixel of?"""
