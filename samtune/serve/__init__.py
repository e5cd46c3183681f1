"""Answers over HTTP: a small API around one `Service`, whatever its task, and a page to try it."""
