// A server of Node's http module that says what it saw: its port on the first line, then a JSON object for each request (README.md).
import { createHash } from 'node:crypto'
import { createServer } from 'node:http'

const say = value => process.stdout.write(JSON.stringify(value) + '\n')

// Node's [name, value, name, value ...] as {name: [value ...]}: nothing is joined or left out.
function listed(raw) {
  const fields = {}
  for (let i = 0; i < raw.length; i += 2) (fields[raw[i]] ??= []).push(raw[i + 1])
  return fields
}

const server = createServer((request, response) => {
  const pieces = []
  let told = false
  const tell = whole => {
    if (told) return
    told = true
    const body = Buffer.concat(pieces)
    say({
      method: request.method,
      target: request.url,
      fields: listed(request.rawHeaders),
      trailers: listed(request.rawTrailers),
      size: body.length,
      sha256: createHash('sha256').update(body).digest('hex'),
      whole
    })
    if (whole) response.end('ok')
  }
  request.on('data', piece => pieces.push(piece))
  request.on('end', () => tell(true))
  request.on('error', () => tell(false))
  request.on('close', () => tell(false))
})
server.on('clientError', (_, socket) => socket.destroy())
server.listen(0, '127.0.0.1', () => console.log(server.address().port))
