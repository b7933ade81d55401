"""A local page to look at slides and their scores."""
