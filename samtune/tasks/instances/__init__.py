"""Instances: pictures with the objects in them, each told from the others."""
