// As node serves, with a short time for idle connections; at ports, or at a path for who stands before it.
const http = require('node:http');
const crypto = require('node:crypto');

// What makes an answer to a key of WebSocket (RFC 6455 §1.3).
const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';

function serve() {
  const server = http.createServer((request, response) => {
    const path = request.url.split('?')[0];
    if (path === '/echo') {
      response.writeHead(200, { 'Content-Type': 'application/octet-stream' });
      request.pipe(response);
    } else if (path === '/digest') {
      const hash = crypto.createHash('sha256');
      request.on('data', (piece) => hash.update(piece));
      request.on('end', () => response.end(hash.digest('hex')));
    } else if (path === '/stream') {
      response.writeHead(200, { 'Content-Type': 'text/plain' });
      response.write('one\n');
      setTimeout(() => response.end('two\n'), 20);
    } else if (path === '/small') {
      response.writeHead(413, { Connection: 'close', 'Content-Length': 2 });
      response.end('no');
    } else {
      response.setHeader('X-Target', encodeURIComponent(request.url));
      response.end('hello\n');
    }
  });
  server.keepAliveTimeout = 1000;
  // Node 20 and later wait for a second longer than they say.
  server.keepAliveTimeoutBuffer = 0;
  return server;
}

// As a library for WebSocket would: a short frame at a time, of a client that says no more before it is
// answered. By itself node leaves out what asks for an upgrade.
function upgrade(request, socket) {
  const key = request.headers['sec-websocket-key'] + GUID;
  const accept = crypto.createHash('sha1').update(key).digest('base64');
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n' +
    `Connection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
  socket.on('data', (frame) => {
    const [mask, text] = [frame.subarray(2, 6), frame.subarray(6)];
    socket.write(Buffer.from([frame[0], text.length, ...text.map((byte, at) => byte ^ mask[at % 4])]));
    if ((frame[0] & 0x0f) === 0x08) {
      socket.end();
    }
  });
}

const [path, ...others] = process.argv.slice(2);
const places = Number(path)
  ? [path, ...others].map((port) => ({ port: Number(port), host: '::' }))
  : [{ path, writableAll: true }];
let missing = places.length;
for (const place of places) {
  const server = serve();
  if (place.path) {
    server.on('upgrade', upgrade);
  }
  server.listen(place, () => {
    missing -= 1;
    if (missing === 0) {
      console.log('listening');
    }
  });
}
