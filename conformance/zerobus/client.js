// The npm client against an endpoint: client.js ENDPOINT WORKSPACE TABLE FORMAT RECORDS BATCH DESCRIPTOR
// FORMAT is json or proto; DESCRIPTOR is base64. The records have the ids 0, 1, 2, …
const { ZerobusSdk, RecordType } = require("@databricks/zerobus-ingest-sdk-linux-x64-gnu");
const [endpoint, workspace, table, format, total, batch, descriptor] = process.argv.slice(2);

function protoRow(i) { // record_id 1 string, device 2 string, n 3 int64, temperature 4 double
  const id = Buffer.from(String(i)), device = Buffer.from("press-" + (i % 7));
  const n = [];
  for (let v = BigInt(i); ; v >>= 7n) {
    if (v < 128n) { n.push(Number(v)); break; }
    n.push(Number(v & 127n) | 128);
  }
  const t = Buffer.alloc(8);
  t.writeDoubleLE(i / 4);
  return Buffer.concat([Buffer.from([10, id.length]), id, Buffer.from([18, device.length]), device, Buffer.from([24, ...n, 33]), t]);
}

function jsonRow(i) {
  return JSON.stringify({ record_id: String(i), device: "press-" + (i % 7), n: i, temperature: i / 4 });
}

async function main() {
  const sdk = new ZerobusSdk(endpoint, workspace, { applicationName: "edgehost-conformance" });
  const stream = await sdk.createStream({ tableName: table, descriptorProto: format === "proto" ? descriptor : undefined },
    "client", "secret", { recordType: format === "proto" ? RecordType.Proto : RecordType.Json });
  const row = format === "proto" ? protoRow : jsonRow;
  let waiting = [];
  for (let i = 0; i < +total; ) {
    const rows = [];
    for (; i < +total && rows.length < +batch; i++) rows.push(row(i));
    waiting.push(rows.length === 1 ? stream.ingestRecordOffset(rows[0]) : stream.ingestRecordsOffset(rows));
    if (waiting.length >= 64) { await Promise.all(waiting); waiting = []; }
  }
  await Promise.all(waiting);
  await stream.flush();
  await stream.close();
}

main().then(() => process.exit(0), (err) => { console.error(err); process.exit(1); });
