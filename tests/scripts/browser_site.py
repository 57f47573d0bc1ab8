"""A page that talks WebSocket with its server, and the server.

The page has loaded once its script has: which the server holds back until the page has
said over the WebSocket that it has seen everything.

usage: browser_site.py serve PORT
"""
import socket
import sys
import threading

from websockets.sync.server import serve

PAGE = """<!doctype html><title>site</title>
<ul id="seen"></ul>
<script>
const see = text => {
  const item = document.createElement("li");
  item.textContent = text;
  document.getElementById("seen").append(item);
};
const socket = new WebSocket(`ws://${location.host}/socket`);
socket.binaryType = "arraybuffer";
const big = new Uint8Array(300000).map((_, at) => at % 251);
let rest = 50;
socket.onopen = () => see("open");
socket.onmessage = ({data}) => {
  if (data === "welcome") {
    see("the server spoke first");
    socket.send(big);
  } else if (data instanceof ArrayBuffer) {
    const back = new Uint8Array(data);
    const same = back.length === big.length && back.every((byte, at) => byte === big[at]);
    see(same ? "bytes are the same" : "bytes differ");
    socket.send(`message ${rest}`);
  } else if (data === `message ${rest}` && --rest > 0) {
    socket.send(`message ${rest}`);
  } else if (rest === 0) {
    rest = -1;
    fetch("/said?by-the-browser")
      .then(answer => answer.text())
      .then(text => { see(text); socket.send("seen"); });
  }
};
socket.onclose = event => see(`closed ${event.code} ${event.reason}`);
</script>
<script src="/loaded.js"></script>
"""

seen = threading.Event()


def answer(connection, request):
    if request.path == "/socket":
        return None
    if request.path == "/loaded.js":
        kind, text = "text/javascript", f'see("loaded: {seen.wait(30)}");'
    elif request.path.startswith("/said?"):
        kind, text = "text/plain", request.path
    else:
        seen.clear()
        kind, text = "text/html; charset=utf-8", PAGE
    response = connection.respond(200, text)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = kind
    return response


def talk(connection):
    connection.send("welcome")
    for message in connection:
        if message == "seen":
            connection.close(4001, "as you wish")
            seen.set()
            return
        connection.send(message)


both = socket.create_server(("::", int(sys.argv[2])), family=socket.AF_INET6, dualstack_ipv6=True)
options = {"process_request": answer, "max_size": 1 << 24, "open_timeout": 60}
with serve(talk, sock=both, **options) as server:
    server.serve_forever()
