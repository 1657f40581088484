// The broker aedes, of MQTT 3.1.1: node aedes_broker.js OPTIONS
//
// OPTIONS is JSON, or null: users maps names to passwords and closes the broker to
// everybody else; denied is a topic filter that nobody may subscribe to. It
// prints "ready", its port on the loopback address and the one for WebSocket when
// it listens, writes its trouble with clients to stderr, and ends with its input.
const http = require('http')
const net = require('net')
const { WebSocketServer, createWebSocketStream } = require('ws')
const { Aedes } = require('aedes')

const options = JSON.parse(process.argv[2]) ?? {}

function refusal (returnCode) {
  return Object.assign(new Error('refused'), { returnCode })
}

function listen (server) {
  return new Promise(resolve => server.listen(0, '127.0.0.1', () => resolve(server.address().port)))
}

async function main () {
  const broker = await Aedes.createBroker({
    authenticate (client, username, password, done) {
      const known = !options.users || (username in options.users && options.users[username] === String(password))
      done(known ? null : refusal(4), known)
    },
    authorizeSubscribe (client, sub, done) {
      done(null, sub.topic === options.denied ? null : sub)
    }
  })
  broker.on('clientError', (client, err) => console.error(client.id, err.message))
  const port = await listen(net.createServer(broker.handle))
  const web = http.createServer()
  new WebSocketServer({ server: web }).on('connection', (socket, request) => {
    broker.handle(createWebSocketStream(socket), request)
  })
  console.log('ready', port, await listen(web))
}

process.stdin.resume().on('end', () => process.exit())
main()
