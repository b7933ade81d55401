"""A local page to look at slides and their scores; for the user of this machine alone. No torch."""

from span_sparse.viewer.content import ViewerContent
from span_sparse.viewer.server import ViewerServer

__all__ = ["ViewerContent", "ViewerServer"]
