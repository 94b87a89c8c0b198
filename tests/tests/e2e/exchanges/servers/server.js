// As node serves, with a short time for idle connections.
const http = require('node:http');

const server = http.createServer((request, response) => {
  const path = request.url.split('?')[0];
  if (path === '/echo') {
    response.writeHead(200, { 'Content-Type': 'application/octet-stream' });
    request.pipe(response);
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
server.listen(Number(process.argv[2]), '::', () => console.log('listening'));
