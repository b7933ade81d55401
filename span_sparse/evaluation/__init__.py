"""Prediction tables in; figures, intervals, pictures and files out. Reads tables, never models."""
