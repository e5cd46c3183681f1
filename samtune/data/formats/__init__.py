"""Annotations in the files of other programs: read into one form, drawn as masks or maps, and written again."""
