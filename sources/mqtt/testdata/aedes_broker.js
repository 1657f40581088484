// The broker aedes, of MQTT 3.1.1: node aedes_broker.js OPTIONS
//
// OPTIONS is JSON: port and wsPort on the loopback address; users maps names to
// passwords and closes the broker to everybody else; denied is a topic filter
// that nobody may subscribe to. It prints "ready" when it listens, writes its
// trouble with clients to stderr, and ends with its input.
const http = require('http')
const net = require('net')
const { WebSocketServer, createWebSocketStream } = require('ws')
const { Aedes } = require('aedes')

const options = JSON.parse(process.argv[2])

function refusal (returnCode) {
  return Object.assign(new Error('refused'), { returnCode })
}

function listen (server, port) {
  return new Promise(resolve => server.listen(port, '127.0.0.1', resolve))
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
  await listen(net.createServer(broker.handle), options.port)
  const web = http.createServer()
  new WebSocketServer({ server: web }).on('connection', (socket, request) => {
    broker.handle(createWebSocketStream(socket), request)
  })
  await listen(web, options.wsPort)
  console.log('ready')
}

process.stdin.resume().on('end', () => process.exit())
main()
