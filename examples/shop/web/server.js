// The shop's front end: one page, a form, and the orders API behind it.
'use strict';

const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');

const template = fs.readFileSync(`${__dirname}/page.html`, 'utf8');
const orders = new URL(process.env.ORDERS_URL);
const agent = new http.Agent({ keepAlive: true, maxSockets: 32 });

function callOrders(method, path, body) {
  return new Promise((resolve, reject) => {
    const request = http.request(new URL(path, orders), { method, agent, timeout: 5000 }, (response) => {
      const chunks = [];
      response.on('data', (chunk) => chunks.push(chunk));
      response.on('end', () => resolve({ status: response.statusCode, body: Buffer.concat(chunks).toString() }));
      response.on('error', reject);
    });
    request.on('timeout', () => request.destroy(new Error('the orders API did not answer in 5 s')));
    request.on('error', reject);
    if (body !== undefined) {
      request.setHeader('Content-Type', 'application/json');
      request.end(JSON.stringify(body));
    } else {
      request.end();
    }
  });
}

const escape = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

async function page(response) {
  const answer = await callOrders('GET', '/orders');
  if (answer.status !== 200) throw new Error(`the orders API said ${answer.status}`);
  const rows = JSON.parse(answer.body)
    .map((o) => `<tr><td>${escape(o.number)}</td><td>${escape(o.bricks)}</td><td>${escape(o.state)}</td></tr>`)
    .join('\n');
  const html = template
    .replace('{{orders}}', () => rows || '<tr><td colspan="3">none yet</td></tr>')
    .replace('{{instance}}', () => escape(os.hostname()));
  response.writeHead(200, { 'Content-Type': 'text/html; charset=utf-8', 'Cache-Control': 'no-store' });
  response.end(html);
}

async function order(request, response) {
  let form = '';
  for await (const chunk of request) {
    form += chunk;
    if (form.length > 4096) {
      response.writeHead(413, { Connection: 'close' }).end('too large\n');
      return;
    }
  }
  const bricks = Number(new URLSearchParams(form).get('bricks'));
  const answer = await callOrders('POST', '/orders', { bricks });
  if (answer.status === 201) {
    response.writeHead(303, { Location: '/' }).end();
  } else {
    response.writeHead(answer.status, { 'Content-Type': 'text/plain' }).end(answer.body);
  }
}

async function handle(request, response) {
  if (request.url === '/healthz') {
    response.writeHead(200).end('ok\n');
  } else if (request.method === 'GET' && request.url === '/') {
    await page(response);
  } else if (request.method === 'POST' && request.url === '/orders') {
    await order(request, response);
  } else {
    response.writeHead(404).end('not found\n');
  }
}

const server = http.createServer((request, response) => {
  handle(request, response).catch((error) => {
    console.error(`${request.method} ${request.url}: ${error.message}`);
    if (!response.headersSent) response.writeHead(502);
    response.end('the shop is having a moment; try again\n');
  });
});

// Longer than the gateway keeps an idle connection, so that it is never this
// end that closes one while a request is on its way.
server.keepAliveTimeout = 120_000;
server.listen(Number(process.env.PORT), () => console.log(`listening on ${process.env.PORT}`));

process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
