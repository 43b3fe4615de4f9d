"""A server for checks: HTTP on 8081, HTTPS on 8443, datagrams on 8053. How it behaves is read anew from the file `mood` for each question.

Usage: server.py DIRECTORY, where `mood`, `key.pem` and `certificate.pem` are.
"""

import http.server
import pathlib
import socket
import ssl
import sys
import threading
import time

DIRECTORY = pathlib.Path(sys.argv[1])


def mood():
    return (DIRECTORY / "mood").read_text()


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if mood() == "silent":
            time.sleep(30)
        if self.headers["Host"] != "health.example":
            self.send_error(421)
        elif mood() == "broken" or self.path != "/alive":
            self.send_error(503)
        else:
            self.send_response(204 if mood() == "other status" else 200)
            self.end_headers()
            self.wfile.write(b"all is lost" if mood() == "other text" else b"x" * 9000 + b"all is well")


def serve(port, context=None):
    server = http.server.ThreadingHTTPServer(("", port), Answers)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(DIRECTORY / "certificate.pem", DIRECTORY / "key.pem")
serve(8081)
serve(8443, context)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
# The answer must come from the address that was asked, of which this host has two.
datagrams.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
datagrams.bind(("", 8053))
print("ready", flush=True)
while True:
    question, asked, _, whence = datagrams.recvmsg(2048, 64)
    if question == b"alive?" and mood() != "silent":
        datagrams.sendmsg([b"no" if mood() == "other text" else b"yes, alive"], asked, 0, whence)
