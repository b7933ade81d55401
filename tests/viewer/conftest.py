from __future__ import annotations

import threading

import pytest

from span_sparse.report import read_heatmap_folder
from span_sparse.viewer import ViewerContent, ViewerServer


@pytest.fixture
def serve():
    """Starts a viewer of a folder of heatmaps; all are ended after the test."""
    running = []

    def start(heatmaps, slides_dir=None, evaluation=None) -> ViewerServer:
        server = ViewerServer(ViewerContent(read_heatmap_folder(heatmaps), slides_dir, evaluation))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()
