// Says of each request what it was: method, target and body in hexadecimal.
const server = require('http').createServer((request, response) => {
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => response.end(`[${request.method} ${request.url} ${Buffer.concat(parts).toString('hex')}]`));
});
server.listen(process.argv[2]);
