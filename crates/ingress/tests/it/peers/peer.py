"""Says of each request what it was: method, target and body in hexadecimal (WSGI)."""


def app(environ, start_response):
    body = environ["wsgi.input"].read()
    said = f"[{environ['REQUEST_METHOD']} {environ['RAW_URI']} {body.hex()}]".encode("latin-1")
    start_response("200 OK", [("Content-Length", str(len(said)))])
    return [said]
