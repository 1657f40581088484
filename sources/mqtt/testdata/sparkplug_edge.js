// A Sparkplug B edge node: node sparkplug_edge.js URL
//
// Each line of its input is {"topic": …, "payload": …}: it encodes the payload
// with the package sparkplug-payload and publishes it at QoS 0. A command that
// it receives is written, decoded, to its output; to a rebirth it answers with
// the births that it published last, in order, unless it is mute.
const readline = require('readline')
const mqtt = require('mqtt')
const sparkplug = require('sparkplug-payload').get('spBv1.0')

const births = new Map()
let mute = false

const client = mqtt.connect(process.argv[2], { clientId: 'edge-node', reconnectPeriod: 100 })

function publish (topic, payload) {
  client.publish(topic, Buffer.from(sparkplug.encodePayload(payload)), { qos: 0 })
}

function revive (key, value) {
  return value && value.$bytes !== undefined ? Buffer.from(value.$bytes, 'base64') : value
}

client.on('connect', () => client.subscribe('spBv1.0/+/NCMD/#', () => console.log('ready')))

client.on('message', (topic, message) => {
  const payload = sparkplug.decodePayload(message)
  console.log(JSON.stringify({ topic, payload }))
  if (mute || !payload.metrics.some(m => m.name === 'Node Control/Rebirth' && m.value === true)) return
  let seq = 0
  for (const [topic, birth] of births) publish(topic, { ...birth, seq: seq++ })
})

readline.createInterface({ input: process.stdin }).on('line', line => {
  const { topic, payload, ...command } = JSON.parse(line, revive)
  if (command.mute !== undefined) mute = command.mute
  if (!topic) return
  if (topic.includes('BIRTH')) births.set(topic, payload)
  publish(topic, payload)
}).on('close', () => client.end())
