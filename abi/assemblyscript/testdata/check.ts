// The module that host/sandbox/sdk_test.go runs to check this SDK: it does what the
// configuration key "op" says. The other SDKs have the same one.
import {
  Batch, Counter, Gauge, Kind, Level, NOTHING, Record, Ref, concat, config, keep, kvDelete, kvGet, kvSet, log, output,
  parseNumber, refuse, started, text, utf8,
} from "../assembly";

export { edgehost_abi_v1, edgehost_alloc } from "../assembly";

const UNIT = keep("unit"), MBAR = keep("mbar"), X = keep("x"), Y = keep("y"), WHY = keep("why"), Z = keep("z");
const QOS = keep("qos"), OTHER = keep("nothing"), COPY = keep("copy"), LATE = keep("late"), SECOND = keep("/2");
const NEW = keep("new "), WAS = keep("{\"was\":"), CLOSE = keep("}"), NO_TEXT = keep("no text: "), COUNT = keep("count");
const OLD = keep("old"), TICK = keep("tick"), T = keep("t"), N = keep("n"), KEPT = keep("state kept"), STOPPED = keep("stopped");

let op = "";
let second: u32 = 0;
let seen: Counter | null = null;
let last: Gauge | null = null;

export function edgehost_init(): i32 {
  op = text(config("op"));
  const known = ["pass", "copy", "edit", "attrs", "filter", "reject", "route", "fan", "grow", "share", "trap", "fail", "state", "parse"];
  if (!known.includes(op)) refuse("no such op: " + op);
  if (op == "route") second = output("second");
  if (op == "state") {
    seen = new Counter("seen");
    last = new Gauge("last");
  }
  return started();
}

function isText(kind: u8): bool { return kind >= Kind.String && kind <= Kind.Json; }

function copyBits(kind: u8, bits: u64): u64 { return isText(kind) ? concat(bits, 0) : bits; }

function copy(batch: Batch): void {
  batch.collect();
  for (let i: u32 = 0; i < batch.length; i++) {
    const r = batch.record(i), n = batch.emitNew();
    n.eventTime = r.eventTime;
    n.ingestTime = r.ingestTime;
    n.source = concat(r.source, 0);
    n.address = concat(r.address, 0);
    n.status = r.status;
    n.set(r.kind, copyBits(r.kind, r.bits));
    for (let k: u32 = 0; k < r.attrCount; k++) {
      const a = r.attrAt(k);
      n.setAttr(concat(a.key, 0), a.kind, copyBits(a.kind, a.bits));
    }
  }
}

function edit(r: Record): void {
  r.eventTime += 1;
  r.ingestTime += 2;
  r.address = r.source;
  r.source = concat(NEW, r.source);
  r.status = 0x80000000;
  switch (r.kind) {
    case Kind.None: r.setInt(1); break;
    case Kind.Bool: r.setBool(r.bits == 0); break;
    case Kind.Int: r.setInt(<i64>r.bits * 2); break;
    case Kind.Uint: r.setUint(r.bits / 2); break;
    case Kind.Float: r.setFloat(r.number * 2); break;
    case Kind.Json: r.set(Kind.Json, concat(concat(WAS, r.bits), CLOSE)); break;
    default: r.set(r.kind, concat(r.bits, r.bits));
  }
}

function attrs(r: Record): void {
  r.setAttrText(UNIT, MBAR);
  r.setAttrFloat(X, 1);
  r.setAttrFloat(X, 2);
  r.setAttrText(Y, WHY);
  r.setAttrBool(Z, true);
  r.delAttr(QOS);
  r.delAttr(OTHER);
}

function fan(batch: Batch, times: i32): void {
  batch.collect();
  for (let i: u32 = 0; i < batch.length; i++) {
    const r = batch.record(i);
    if (r.kind == Kind.None) continue;
    batch.emit(r);
    for (let k = 1; k < times; k++) {
      const other = batch.emit(r);
      other.address = concat(r.address, SECOND);
      other.setAttrInt(COPY, i);
    }
  }
}

function share(batch: Batch): void {
  batch.collect();
  for (let i: u32 = 0; i < batch.length; i++) {
    const r = batch.record(i);
    r.setAttrInt(COPY, 0);
    batch.emit(r);
    r.setAttrInt(COPY, 1);
    const other = batch.emit(r);
    other.setAttrInt(COPY, i);
    other.delAttr(QOS);
    r.setAttrBool(LATE, true);
    r.delAttr(COPY);
  }
}

function state(batch: Batch): void {
  let was: Ref = kvGet(COUNT), count: u64 = batch.length;
  if (was == NOTHING) was = 0;
  if (was >> 32 == 8) count += load<u64>(<usize><u32>was);
  const now = utf8("12345678");
  store<u64>(<usize><u32>now, count);
  kvSet(COUNT, now, 60000);
  kvDelete(OLD);
  seen!.add(batch.length);
  last!.set(<f64>count);
  log(Level.Warn, KEPT);
  for (let i: u32 = 0; i < batch.length; i++) batch.record(i).setAttr(COUNT, Kind.Bytes, was);
}

function parse(r: Record): void {
  if (!r.isText) return;
  const n = parseNumber(text(r.bits));
  if (isNaN(n)) r.setNone();
  else r.setFloat(n);
}

export function edgehost_process(at: usize): i32 {
  const batch = Batch.begin(at);
  if (op == "copy") copy(batch);
  if (op == "fan") fan(batch, 2);
  if (op == "grow") fan(batch, 3);
  if (op == "share") share(batch);
  assert(op != "trap", "the module traps");
  if (op == "state") state(batch);
  if (op == "fail") return batch.fail(concat(utf8("refused by "), batch.length ? batch.record(0).source : utf8("nobody")));
  if (op == "filter") batch.filter();
  for (let i: u32 = 0; i < batch.length; i++) {
    const r = batch.record(i);
    if (op == "edit") edit(r);
    if (op == "attrs") attrs(r);
    if (op == "filter" && i % 2) batch.keep(i);
    if (op == "reject" && r.kind == Kind.String) r.reject(concat(NO_TEXT, r.address));
    if (op == "route" && i % 2) r.output = second;
    if (op == "parse") parse(r);
  }
  return batch.end();
}

export function edgehost_tick(at: usize): i32 {
  const batch = Batch.begin(at);
  const r = batch.emitNew();
  r.eventTime = batch.time - 1;
  r.source = TICK;
  r.address = T;
  r.setFloat(<f64>batch.seq);
  r.setAttrUint(N, batch.seq);
  return batch.end();
}

export function edgehost_stop(): void { log(Level.Info, STOPPED); }
