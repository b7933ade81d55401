"""How does a person look through a thousand slides in a few minutes?

`STORE.qc/index.html`: one page with a card per slide (thumbnail with tissue and patches, counts, the reason of a
failure), sortable by status, patches, failed patches and name, with a filter. It needs no server and no network: style
and script are in the page, pictures lie beside it and are loaded as they scroll into view. On a phone the cards are one
column.

Everything that comes from tables and files is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Final
from urllib.parse import quote

from span_sparse.extract.process_list import DONE, FAILED, SlideStatus
from span_sparse.extract.slide_pictures import THUMBNAIL, picture_path
from span_sparse.files import write_atomically

_PAGE: Final = Template("""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 0 auto; padding: 0 12px 40px; max-width: 1800px; }
header { position: sticky; top: 0; background: Canvas; padding: 10px 0; display: flex; flex-wrap: wrap; gap: 8px 14px;
  align-items: baseline; z-index: 1; }
h1 { font-size: 17px; margin: 0; }
select, input { font: inherit; padding: 4px 6px; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 12px; }
article { border: 1px solid color-mix(in srgb, CanvasText 25%, Canvas); border-radius: 6px; padding: 8px;
  content-visibility: auto; contain-intrinsic-size: auto 330px; }
article.failed { border: 2px solid #c62828; }
img { display: block; width: 100%; height: 240px; object-fit: contain; background: #fff; }
h2 { font-size: 15px; margin: 6px 0 2px; overflow-wrap: anywhere; }
p { margin: 0; overflow-wrap: anywhere; }
.failed p.reason { color: #c62828; }
</style>
<header>
<h1>$title</h1><span>$summary</span>
<label>sort by <select id="order"><option value="status">status</option><option value="patches">fewest patches</option>
<option value="unreadable">most unreadable patches</option><option value="name">name</option></select></label>
<input id="filter" type="search" placeholder="filter" aria-label="filter">
</header>
<main>
$cards
</main>
<script>
const main = document.querySelector("main"), cards = [...main.children];
const number = (card, key) => Number(card.dataset[key]);
const orders = {
  status: (a, b) => number(a, "status") - number(b, "status") || number(a, "index") - number(b, "index"),
  patches: (a, b) => number(a, "patches") - number(b, "patches"),
  unreadable: (a, b) => number(b, "unreadable") - number(a, "unreadable"),
  name: (a, b) => number(a, "index") - number(b, "index"),
};
const order = document.getElementById("order"), filter = document.getElementById("filter");
const sort = () => main.append(...cards.sort(orders[order.value]));
order.onchange = sort;
filter.oninput = () => {
  const wanted = filter.value.toLowerCase();
  for (const card of cards) card.hidden = !card.textContent.toLowerCase().includes(wanted);
};
sort();
</script>
</html>
""")


def qc_page_path(store: Path) -> Path:
    """Where the page of a store lies."""
    return picture_path(store, "any", THUMBNAIL).with_name("index.html")


def write_qc_page(store: Path, statuses: Iterable[SlideStatus]) -> Path:
    """Write the page of a store in one step.

    Args:
        store: folder of the store.
        statuses: what became of each slide.

    Returns:
        Path of the page.

    Raises:
        OSError: the folder cannot be written.
    """
    rows = sorted(statuses, key=lambda row: row.slide_id)
    num_failed = sum(row.status == FAILED for row in rows)
    num_patches = sum(row.num_patches for row in rows)
    page = _PAGE.substitute(
        title=escape(f"{store.name}: slides"),
        summary=f"{len(rows)} slides, {num_failed} failed, {num_patches:,} patches",
        cards="\n".join(_card(store, index, row) for index, row in enumerate(rows)),
    )
    write_atomically(qc_page_path(store), page.encode())
    return qc_page_path(store)


def _card(store: Path, index: int, row: SlideStatus) -> str:
    picture = picture_path(store, row.slide_id, THUMBNAIL)
    shown, name = "", escape(row.slide_id)
    if picture.exists():
        source = escape(quote(picture.name))
        shown = f'<a href="{source}"><img loading="lazy" src="{source}" alt="thumbnail of {name}"></a>'
    counts = f"{row.num_patches:,} patches"
    if row.failed_patches:
        counts += f", {row.failed_patches:,} not readable"
    text = (
        f"<p>{counts}</p>" if row.status == DONE else f'<p class="reason">{escape(row.status)}: {escape(row.error)}</p>'
    )
    return (
        f'<article class="{escape(row.status)}" data-index="{index}" data-status="{int(row.status == DONE)}" '
        f'data-patches="{row.num_patches}" data-unreadable="{row.failed_patches}">'
        f"{shown}<h2>{name}</h2>{text}</article>"
    )
