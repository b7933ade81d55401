"""Annotations of regions: read the files of ASAP, Aperio ImageScope and QuPath, and find what they cover."""

from span_sparse.wsi.annotations.classes import ClassMapping
from span_sparse.wsi.annotations.files import AnnotationFiles, read_annotations
from span_sparse.wsi.annotations.overlap import class_regions, overlap_ratios
from span_sparse.wsi.annotations.shapes import Annotation, SlideAnnotations

__all__ = [
    "Annotation",
    "AnnotationFiles",
    "ClassMapping",
    "SlideAnnotations",
    "class_regions",
    "overlap_ratios",
    "read_annotations",
]
