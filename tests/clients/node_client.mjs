// The Node clients: node_client.mjs http|fetch BASE PARALLEL; reads requests and writes what came of them as README.md here says.
import { createHash } from 'node:crypto';
import http from 'node:http';
import https from 'node:https';
import readline from 'node:readline';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';

const [library, base, parallel] = process.argv.slice(2);
const unit = Buffer.concat(Array.from({ length: 64 }, () => Buffer.from(Array.from({ length: 251 }, (_, i) => i))));

// The body of `size` bytes that README.md describes; a piece begins where the pattern does.
function* pieces(size) {
    for (; size > 0; size -= unit.length) yield unit.subarray(0, Math.min(size, unit.length));
}

function parse(line) {
    const [id, method, path, body, flags, ...fields] = line.split('\t');
    const [kind, size] = body.split(':');
    const headers = Object.fromEntries(fields.map((f) => [f.slice(0, f.indexOf(': ')), f.slice(f.indexOf(': ') + 2)]));
    if (flags.split(',').includes('close')) headers.Connection = 'close';
    return { id, method, path, kind, size: Number(size ?? 0), expect: flags.split(',').includes('expect'), headers };
}

const transport = base.startsWith('https:') ? https : http;
const agent = new transport.Agent({ keepAlive: true, maxSockets: Number(parallel) });

function withHttp(r) {
    return new Promise((resolve, reject) => {
        const headers = { ...r.headers };
        if (r.kind === 'length') headers['Content-Length'] = r.size;
        const request = transport.request(base + r.path, { method: r.method, headers, agent });
        let answered = false;
        request.on('response', async (response) => {
            answered = true;
            const hash = createHash('sha256');
            let size = 0;
            try {
                for await (const piece of response) {
                    hash.update(piece);
                    size += piece.length;
                }
                resolve([response.statusCode, size, hash.digest('hex'), Object.entries(response.headers)]);
            } catch (e) {
                reject(e);
            }
        });
        // What fails in sending does not matter once there is an answer: it may be an early one.
        request.on('error', (e) => answered || reject(e));
        const send = () => (r.kind === '-' ? request.end() : pipeline(Readable.from(pieces(r.size)), request).catch(() => {}));
        if (r.expect) {
            request.on('continue', send);
            request.flushHeaders();
        } else {
            send();
        }
    });
}

async function withFetch(r) {
    const how = { method: r.method, headers: r.headers };
    if (r.kind === 'length') how.body = Buffer.concat([...pieces(r.size)]);
    if (r.kind === 'stream') Object.assign(how, { body: Readable.toWeb(Readable.from(pieces(r.size))), duplex: 'half' });
    const response = await fetch(base + r.path, how);
    const body = Buffer.from(await response.arrayBuffer());
    return [response.status, body.length, createHash('sha256').update(body).digest('hex'), [...response.headers]];
}

const ask = library === 'fetch' ? withFetch : withHttp;
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function work() {
    for (;;) {
        const { value: line, done } = await lines.next();
        if (done) return;
        const r = parse(line);
        try {
            const [status, size, hash, fields] = await ask(r);
            console.log([r.id, status, size, hash, ...fields.map(([n, v]) => `${n}: ${v}`)].join('\t'));
        } catch (e) {
            console.log([r.id, 'error', `${e} ${e.cause ?? ''}`.replace(/\s+/g, ' ')].join('\t'));
        }
    }
}

await Promise.all(Array.from({ length: Number(parallel) }, work));
agent.destroy();
