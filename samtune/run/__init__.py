"""In which order does a job run?"""
