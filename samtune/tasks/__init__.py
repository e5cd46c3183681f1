"""What kinds of jobs are there? Everything in which they differ; one folder each."""
