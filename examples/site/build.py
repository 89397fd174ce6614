"""Makes dist/ of pages/*.txt: a page each, an index, a style sheet whose name says its content, and a page for what is missing."""

import gzip
import hashlib
import html
import os
import pathlib

TITLE = os.environ.get("TITLE", "A site")
STYLE = "body{font:1.1rem/1.6 system-ui,sans-serif;max-width:38rem;margin:3rem auto;padding:0 1rem}a{color:#b3412e}"

dist = pathlib.Path("dist")


def write(name, text):
    path = dist / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    # The ingress sends the compressed neighbour to clients that take it.
    pathlib.Path(f"{path}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


style = f"/assets/{hashlib.sha256(STYLE.encode()).hexdigest()[:8]}.css"
write(style.lstrip("/"), STYLE)


def page(title, body):
    return f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><link rel="stylesheet" href="{style}">{body}\n'


links = []
for source in sorted(pathlib.Path("pages").glob("*.txt")):
    title, _, text = source.read_text(encoding="utf-8").partition("\n")
    paragraphs = "".join(f"<p>{html.escape(part)}</p>" for part in text.split("\n\n"))
    write(f"pages/{source.stem}.html", page(title, f'<p><a href="/">home</a></p><h1>{html.escape(title)}</h1>{paragraphs}'))
    links.append(f'<li><a href="/pages/{source.stem}">{html.escape(title)}</a>')

clock = '<p id="now">…</p><script>fetch("/api/now").then(r=>r.text()).then(t=>now.textContent=t)</script>'
write("index.html", page(TITLE, f"<h1>{html.escape(TITLE)}</h1><ul>{''.join(links)}</ul>{clock}"))
write("404.html", page("Not here", '<h1>Not here</h1><p><a href="/">home</a></p>'))
print(f"{len(links)} pages")
