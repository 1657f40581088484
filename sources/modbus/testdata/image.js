// image.js loads the IMAGE of pymodbus_server.py for the peers in JavaScript, and
// encodes values by Node's Buffer.
"use strict";
const fs = require("fs");

function float16(v) {
  if (Number.isNaN(v)) return 0x7e00;
  const sign = v < 0 || Object.is(v, -0) ? 0x8000 : 0, m = Math.abs(v);
  if (m === Infinity) return sign | 0x7c00;
  if (m < 2 ** -14) return sign | m * 2 ** 24;
  const e = Math.floor(Math.log2(m));
  return sign | (e + 15) << 10 | (m / 2 ** e - 1) * 1024;
}

function encode(type, order, value) {
  const [kind, n] = type.split(":"), v = Number(value);
  const b = Buffer.alloc({ int32: 4, uint32: 4, float32: 4, bcd32: 4, int64: 8, uint64: 8, float64: 8, string: (Number(n) + 1 >> 1) * 2 }[kind] || 2, " ");
  switch (kind) {
    case "bool": case "uint16": b.writeUInt16BE(v); break;
    case "bit": b.writeUInt16BE(v === 1 ? 1 << n : 0xffff ^ 1 << n); break;
    case "int8": b.writeUInt8(0x55, 0); b.writeInt8(v, 1); break;
    case "uint8": b.writeUInt8(0x55, 0); b.writeUInt8(v, 1); break;
    case "int8_high": b.writeInt8(v, 0); b.writeUInt8(0x55, 1); break;
    case "uint8_high": b.writeUInt8(v, 0); b.writeUInt8(0x55, 1); break;
    case "int16": b.writeInt16BE(v); break;
    case "int32": b.writeInt32BE(v); break;
    case "uint32": b.writeUInt32BE(v); break;
    case "int64": b.writeBigInt64BE(BigInt(value)); break;
    case "uint64": b.writeBigUInt64BE(BigInt(value)); break;
    case "float16": b.writeUInt16BE(float16(v)); break;
    case "float32": b.writeFloatBE(v); break;
    case "float64": b.writeDoubleBE(v); break;
    case "bcd16": b.writeUInt16BE(parseInt(value, 16)); break;
    case "bcd32": b.writeUInt32BE(parseInt(value, 16)); break;
    case "string": b.write(value, "latin1"); break;
    default: throw new Error("unknown type " + type);
  }
  if (kind !== "string" && (order === "CDAB" || order === "DCBA")) b.reverse().swap16(); // the registers reversed
  if (order === "BADC" || order === "DCBA") b.swap16();
  return b.toString("hex");
}

exports.load = function load(path) {
  const tables = { holding: "", input: "", coil: "", discrete: "" };
  for (const line of fs.readFileSync(path, "utf8").trim().split("\n")) {
    const [name, ...rest] = line.split(" ");
    tables[name] += rest.length === 1 ? rest[0] : encode(...rest);
  }
  return tables;
};
