// modbus-serial as a peer: modbus_serial_server.js IMAGE PORT [HOLE-HOLE]; IMAGE as in pymodbus_server.py.
"use strict";
const { ServerTCP } = require("modbus-serial");

const image = require("./image.js").load(process.argv[2]);
const hole = (process.argv[4] || "-1--1").split("-").map(Number);
const words = (hex) => (hex.match(/.{4}/g) || []).map((w) => parseInt(w, 16));
const tables = { holding: words(image.holding), input: words(image.input), coil: [...image.coil].map((b) => b === "1"), discrete: [...image.discrete].map((b) => b === "1") };

function read(table, at) {
  if (at >= tables[table].length || (hole.length === 2 && at >= hole[0] && at <= hole[1])) {
    const err = new Error("illegal address");
    err.modbusErrorCode = 2;
    throw err;
  }
  return tables[table][at];
}

new ServerTCP({
  getHoldingRegister: async (at) => read("holding", at),
  getInputRegister: async (at) => read("input", at),
  getCoil: async (at) => read("coil", at),
  getDiscreteInput: async (at) => read("discrete", at),
}, { host: "127.0.0.1", port: Number(process.argv[3]), unitID: 255 });
