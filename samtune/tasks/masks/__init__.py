"""Segmentation: pairs of image and mask."""
