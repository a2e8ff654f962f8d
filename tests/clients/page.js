// What the page in the browser does: fetch() for each request of a plan, `parallel` at a time.
function pattern(size) {
    const b = new Uint8Array(size);
    for (let i = 0; i < size; i++) b[i] = i % 251;
    return b;
}

async function ask(r) {
    try {
        const response = await fetch(r.url, {
            method: r.method, headers: r.fields, cache: 'no-store', body: r.size === null ? undefined : pattern(r.size),
        });
        const body = await response.arrayBuffer();
        const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', body));
        const sha256 = Array.from(digest, (b) => b.toString(16).padStart(2, '0')).join('');
        return { id: r.id, status: response.status, size: body.byteLength, sha256, fields: Object.fromEntries(response.headers) };
    } catch (e) {
        return { id: r.id, error: String(e) };
    }
}

async function run(plan, parallel) {
    const results = [];
    let next = 0;
    const work = async () => {
        while (next < plan.length) {
            const at = next++;
            results[at] = await ask(plan[at]);
        }
    };
    await Promise.all(Array.from({ length: parallel }, work));
    return results;
}
