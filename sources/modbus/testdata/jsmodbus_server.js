// jsmodbus as a peer: jsmodbus_server.js IMAGE PORT; IMAGE as in pymodbus_server.py.
"use strict";
const net = require("net");
const { server } = require("jsmodbus");

const image = require("./image.js").load(process.argv[2]);
function bits(text) {
  const out = Buffer.alloc(Math.ceil(text.length / 8));
  [...text].forEach((b, i) => { if (b === "1") out[i >> 3] |= 1 << (i & 7); });
  return out;
}

const listener = new net.Server();
new server.TCP(listener, {
  holding: Buffer.from(image.holding, "hex"), input: Buffer.from(image.input, "hex"),
  coils: bits(image.coil), discrete: bits(image.discrete),
});
listener.listen(Number(process.argv[3]), "127.0.0.1");
