"""How do many requests read a few slides without opening them over and over, or all at once?

A bounded number of slides stay open, the least recently used is closed first. Requests for the same slide wait for each
other (a reader that meets a damaged tile opens its file again, which no second thread may see half done); requests for
other slides do not.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from PIL import Image

from span_sparse.wsi import SlideReader, open_slide
from span_sparse.wsi.deep_zoom import DeepZoomPyramid, read_tile

MAX_OPEN: Final = 8
JPEG_QUALITY: Final = 85


class _OpenSlide:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.reader: SlideReader | None = None
        self.is_evicted = False


class OpenSlides:
    """Slides that are open; safe for several threads."""

    def __init__(self, max_open: int = MAX_OPEN) -> None:
        self._max_open = max_open
        self._lock = threading.Lock()
        self._slides: OrderedDict[Path, _OpenSlide] = OrderedDict()

    def pyramid(self, path: Path) -> DeepZoomPyramid:
        """The tiles of a slide.

        Raises:
            SlideError: the slide cannot be opened.
        """
        slide = self._locked(path)
        try:
            reader = self._reader(slide)
            return DeepZoomPyramid(reader.width_px0, reader.height_px0)
        finally:
            slide.lock.release()

    def tile(self, path: Path, level: int, column: int, row: int) -> bytes | None:
        """A tile as JPEG; None when the slide has no such tile.

        Raises:
            SlideError: the slide cannot be read there.
        """
        slide = self._locked(path)
        try:
            reader = self._reader(slide)
            place = DeepZoomPyramid(reader.width_px0, reader.height_px0).tile(level, column, row)
            pixels = None if place is None else read_tile(reader, *place)
        finally:
            slide.lock.release()
        return None if pixels is None else jpeg(Image.fromarray(pixels))

    def close(self) -> None:
        """Closes all slides; requests that come later open them again."""
        with self._lock:
            slides = list(self._slides.values())
            self._slides.clear()
        for slide in slides:
            _evict(slide)

    @property
    def num_open(self) -> int:
        """Slides that are open now."""
        with self._lock:
            return sum(slide.reader is not None for slide in self._slides.values())

    def _locked(self, path: Path) -> _OpenSlide:
        """The entry of a slide, with its lock held."""
        while True:
            with self._lock:
                slide = self._slides.setdefault(path, _OpenSlide(path))
                self._slides.move_to_end(path)
                surplus = len(self._slides) - self._max_open
                evicted = [self._slides.popitem(last=False)[1] for _ in range(surplus)]
            for one in evicted:
                _evict(one)
            slide.lock.acquire()
            if not slide.is_evicted:
                return slide
            slide.lock.release()  # closed while this thread waited: it is no longer in the table

    @staticmethod
    def _reader(slide: _OpenSlide) -> SlideReader:
        if slide.reader is None:
            slide.reader = open_slide(slide.path)
        return slide.reader


def jpeg(picture: Image.Image) -> bytes:
    """A picture as JPEG, without thinning out colours: an overlay is judged by its edges."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _evict(slide: _OpenSlide) -> None:
    with slide.lock:
        slide.is_evicted = True
        if slide.reader is not None:
            slide.reader.close()
            slide.reader = None
