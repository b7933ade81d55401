"""`span view`: where on the slide did the model look, and on which slides was it wrong?

Serves a page on this machine alone, at an address with a random token, until it is interrupted. On a remote machine:
`ssh -L 8000:127.0.0.1:PORT host`, then the printed address with 8000 in place of PORT. The browser is not started from
here: the address would stand in the list of processes, which everybody on the machine can read.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

DESCRIPTION = "Look at slides with their heatmaps in the browser; for this machine's user alone."


def build_parser() -> ArgumentParser:
    """The options of `span view`."""
    parser = ArgumentParser(prog="span view", description=DESCRIPTION)
    parser.add_argument("--heatmaps", type=Path, required=True, help="folder that `span heatmap --output` wrote")
    parser.add_argument(
        "--slides", type=Path | None, default=None, help="folder of the slide files; default: patches on white"
    )
    parser.add_argument(
        "--evaluation", type=Path | None, default=None, help="folder of `span evaluate`: the most wrong slides first"
    )
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    return parser


def run(args: Namespace) -> int:
    """Serves until interrupted; returns 0.

    Raises:
        SpanError: a folder cannot be shown, or the port is taken.
    """
    from span_sparse.errors import ConfigError, ReportError
    from span_sparse.report import read_evaluation, read_heatmap_folder
    from span_sparse.viewer import ViewerContent, ViewerServer

    if not 0 <= args.port < 65_536:
        raise ConfigError(f"--port {args.port}: expected 0 to 65535; 0 for a free one")
    if args.slides is not None and not args.slides.is_dir():
        raise ReportError(f"{args.slides}: no such folder of slides; leave out --slides to see patches on white")
    heatmaps = read_heatmap_folder(args.heatmaps)
    evaluation = None if args.evaluation is None else read_evaluation(args.evaluation)
    content = ViewerContent(heatmaps, args.slides, evaluation)
    try:
        server = ViewerServer(content, args.port)
    except OSError as error:
        raise ReportError(f"port {args.port} cannot be used ({error}); leave out --port for a free one") from error
    for remark in heatmaps.remarks:
        print(f"note: {remark}")
    print(f"{len(content.entries)} slides. Open this address, and give it to nobody; Ctrl+C ends the viewer:")
    print(server.address, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("ended")
    finally:
        server.server_close()
    return 0
