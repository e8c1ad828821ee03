// An HTTP server with a WebSocket, of what Node.js brings along: /digest/TEXT, /total; a text frame is answered with how
// many this socket has sent and their digest, and each socket is told the time, which never goes back.
'use strict';
const crypto = require('crypto');
const http = require('http');

const [host, port] = process.argv.slice(2);
let total = 0;
let garbage = [];

const server = http.createServer((req, res) => {
	let body = '';
	if (req.url.startsWith('/digest/')) {
		total++;
		garbage.push(Buffer.alloc(20000, total & 255)); // keeps the collector busy
		if (garbage.length > 500) garbage = garbage.slice(400);
		body = crypto.createHash('sha256').update(req.url.slice(8)).digest('hex');
	} else if (req.url === '/total') {
		body = String(total);
	}
	res.end(body);
});
server.keepAliveTimeout = 0;
server.requestTimeout = 0;
server.headersTimeout = 0;

function frame(text) {
	const data = Buffer.from(text);
	return Buffer.concat([Buffer.from([0x81, data.length]), data]); // all shorter than 126
}

// The client's frames are short text frames, masked; a rest waits for more.
function takeFrames(rest, onText) {
	while (rest.length >= 6 && rest.length >= 6 + (rest[1] & 127)) {
		const n = rest[1] & 127;
		const data = Buffer.from(rest.subarray(6, 6 + n));
		for (let i = 0; i < n; i++) data[i] ^= rest[2 + (i & 3)];
		onText(data);
		rest = rest.subarray(6 + n);
	}
	return rest;
}

server.on('upgrade', (req, socket) => {
	const key = req.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
	socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
		'Sec-WebSocket-Accept: ' + crypto.createHash('sha1').update(key).digest('base64') + '\r\n\r\n');
	const digest = crypto.createHash('sha256');
	let n = 0;
	let rest = Buffer.alloc(0);
	const timer = setInterval(() => socket.write(frame('time ' + process.hrtime.bigint())), 20);
	socket.on('data', (data) => {
		rest = takeFrames(Buffer.concat([rest, data]), (text) => {
			digest.update(text);
			n++;
			socket.write(frame('echo ' + n + ' ' + digest.copy().digest('hex')));
		});
	});
	socket.on('close', () => clearInterval(timer));
	socket.on('error', () => {});
});

server.listen(Number(port), host);
