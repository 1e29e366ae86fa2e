// SPDX-License-Identifier: GPL-2.0-or-later
// An HTTP server: node hello.js PORT WORKERS; 0 workers: no cluster.
const cluster = require("node:cluster");
const http = require("node:http");

const port = Number(process.argv[2]);
const workers = Number(process.argv[3]);

if (workers > 0 && cluster.isPrimary) {
  for (let i = 0; i < workers; i++) cluster.fork();
} else {
  http.createServer((request, response) => response.end("hello\n")).listen(port, "127.0.0.1");
}
