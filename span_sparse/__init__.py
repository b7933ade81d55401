"""Sparse Pyramid Attention Networks for whole-slide images."""
