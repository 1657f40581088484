/** What lies in memory (docs/abi.md, sections 2 and 3). */
import { alloc, begin, isOurs } from "./memory";
import { Ref, ptrOf, lenOf, refOf, equal } from "./text";

/** The index of a record that derives from no input record. */
export const NO_INDEX: u32 = 0xffff_ffff;

export namespace Kind {
  export const None: u8 = 0;
  export const Bool: u8 = 1;
  export const Int: u8 = 2;
  export const Uint: u8 = 3;
  export const Float: u8 = 4;
  export const String: u8 = 5;
  export const Bytes: u8 = 6;
  export const Json: u8 = 7;
}

export namespace Protocol {
  export const None: u8 = 0;
  export const OpcUa: u8 = 1;
  export const Mqtt: u8 = 2;
  export const Modbus: u8 = 3;
}

// Of the batch that runs.
let rowSize: u32 = 0;
let attrSize: u32 = 0;
let outRows: usize = 0; // the output rows, once something is emitted
let outN: u32 = 0;
let outRoom: u32 = 0;
let kept: i32 = -1; // rows kept by Batch.keep; -1 before that

// The last edit of attributes: which array became which by what.
let memoFrom: Ref = 0;
let memoTo: Ref = 0;
let memoKey: Ref = 0;
let memoBits: u64 = 0;
let memoKind: u8 = 0xff; // no edit

function isNumeric(kind: u8): bool { return kind >= Kind.Bool && kind <= Kind.Float; }

function isText(kind: u8): bool { return kind >= Kind.String && kind <= Kind.Json; }

function numberOf(kind: u8, bits: u64): f64 {
  switch (kind) {
    case Kind.Float: return reinterpret<f64>(bits);
    case Kind.Int: return <f64><i64>bits;
    case Kind.Uint:
    case Kind.Bool: return <f64>bits;
  }
  return NaN;
}

/** An attribute of a record; for reading, since records share them. */
@unmanaged export class Attr {
  key: Ref;
  /** By kind: the bits of a float, an int, a uint, 0 or 1, or a Ref. */
  bits: u64;
  kind: u8;

  get isNumber(): bool { return isNumeric(this.kind); }
  get number(): f64 { return numberOf(this.kind, this.bits); }
  get isText(): bool { return isText(this.kind); }
}

/** A view of one record of the batch. Times are microseconds since the Unix epoch. */
@unmanaged export class Record {
  /** When the value was measured. */
  eventTime: i64;
  ingestTime: i64;
  /** The value, by kind: the bits of a float, an int, a uint, 0 or 1, or a Ref. */
  bits: u64;
  source: Ref;
  /** The topic, node id or register. */
  address: Ref;
  /** The attribute array; use attr, setAttr, delAttr. */
  attrs: Ref;
  reason: Ref;
  /** The quality as an OPC UA StatusCode. */
  status: u32;
  /** The position of the record in its batch; NO_INDEX for a new one. */
  index: u32;
  /** A handle of `output`; 0 is the default. */
  output: u32;
  kind: u8;
  protocol: u8;
  disposition: u8;
  flags: u8;
  reserved: u64;

  /** Whether the value is a bool or a number of any kind. */
  get isNumber(): bool { return isNumeric(this.kind); }
  /** The value as a float; NaN when it is no number. */
  get number(): f64 { return numberOf(this.kind, this.bits); }
  /** Whether the value is a string, json or bytes. */
  get isText(): bool { return isText(this.kind); }

  set(kind: u8, bits: u64): void {
    this.kind = kind;
    this.bits = bits;
  }
  setNone(): void { this.set(Kind.None, 0); }
  setBool(v: bool): void { this.set(Kind.Bool, v ? 1 : 0); }
  setInt(v: i64): void { this.set(Kind.Int, <u64>v); }
  setUint(v: u64): void { this.set(Kind.Uint, v); }
  setFloat(v: f64): void { this.set(Kind.Float, reinterpret<u64>(v)); }
  setText(v: Ref): void { this.set(Kind.String, v); }

  /** Sends the record as it arrived to the dead-letter queue. */
  reject(reason: Ref): void {
    this.disposition = 1;
    this.reason = reason;
  }

  get attrCount(): u32 { return lenOf(this.attrs); }

  attrAt(i: u32): Attr { return changetype<Attr>(ptrOf(this.attrs) + i * attrSize); }

  /** The attribute with a key. */
  attr(key: Ref): Attr | null {
    const n = this.attrCount;
    for (let i: u32 = 0; i < n; i++) {
      const a = this.attrAt(i);
      if (equal(a.key, key)) return a;
    }
    return null;
  }

  /** Sets an attribute. Records that share their attributes and get the same edit one
   * after the other share the result, which costs the host one look. */
  setAttr(key: Ref, kind: u8, bits: u64): void {
    const from = this.attrs;
    if (memoKind == kind && memoFrom == from && memoKey == key && memoBits == bits) {
      this.attrs = memoTo;
      this.share();
      return;
    }
    this.own(lenOf(from) + 1);
    let a = this.attr(key);
    if (a == null) {
      a = this.attrAt(lenOf(from));
      memory.fill(changetype<usize>(a), 0, attrSize);
      a.key = key;
      this.attrs = refOf(ptrOf(this.attrs), lenOf(from) + 1);
    }
    a.bits = bits;
    a.kind = kind;
    memoFrom = from;
    memoTo = this.attrs;
    memoKey = key;
    memoBits = bits;
    // An array that was ours already is not remembered.
    memoKind = ptrOf(from) == ptrOf(this.attrs) ? 0xff : kind;
  }
  setAttrBool(key: Ref, v: bool): void { this.setAttr(key, Kind.Bool, v ? 1 : 0); }
  setAttrInt(key: Ref, v: i64): void { this.setAttr(key, Kind.Int, <u64>v); }
  setAttrUint(key: Ref, v: u64): void { this.setAttr(key, Kind.Uint, v); }
  setAttrFloat(key: Ref, v: f64): void { this.setAttr(key, Kind.Float, reinterpret<u64>(v)); }
  setAttrText(key: Ref, v: Ref): void { this.setAttr(key, Kind.String, v); }

  /** Removes an attribute, if there is one. */
  delAttr(key: Ref): void {
    if (this.attr(key) == null) return;
    memoKind = 0xff;
    const n = this.attrCount;
    this.own(n);
    const a = changetype<usize>(this.attr(key));
    const end = ptrOf(this.attrs) + n * attrSize;
    memory.copy(a, a + attrSize, end - a - attrSize);
    this.attrs = refOf(ptrOf(this.attrs), n - 1);
  }

  /** Where an array of ours says how many attributes it may hold before it must move:
   * before the array. It is 0 while several records may refer to it. */
  private room(): usize {
    return this.attrCount > 0 && isOurs(<u32>ptrOf(this.attrs)) ? ptrOf(this.attrs) - 8 : 0;
  }

  private share(): void {
    const room = this.room();
    if (room) store<u32>(room, 0);
  }

  /** Gives the record an attribute array of its own with room for n. */
  private own(n: u32): void {
    const at = this.room();
    if (at && load<u32>(at) >= n) return;
    const room = n + 2, old = this.attrs;
    const p = alloc(8 + room * attrSize) + 8;
    memory.copy(p, ptrOf(old), lenOf(old) * attrSize);
    store<u32>(p - 8, room);
    this.attrs = refOf(p, lenOf(old));
  }
}

/** The batch of a call. */
@unmanaged export class Batch {
  version: u32;
  headerSize: u32;
  rowSize: u32;
  flags: u32;
  rows: u32;
  /** The number of input records. */
  length: u32;
  outRows: u32;
  outN: u32;
  /** The time of the batch in microseconds. */
  time: i64;
  /** The number of the batch in its pipeline. */
  seq: u64;
  error: Ref;
  attrSize: u32;
  reserved: u32;

  /** Begins a call: the address is what edgehost_process and edgehost_tick get. */
  static begin(at: usize): Batch {
    begin();
    const batch = changetype<Batch>(at);
    rowSize = batch.rowSize;
    attrSize = batch.attrSize;
    outRows = 0;
    outN = 0;
    kept = -1;
    memoKind = 0xff;
    return batch;
  }

  /** Ends a call that succeeds: return batch.end(). */
  end(): i32 {
    if (outRows) {
      this.outRows = <u32>outRows;
      this.outN = outN;
    } else if (kept >= 0) {
      this.outN = <u32>kept;
    }
    return 0;
  }

  /** Ends a call that fails: return batch.fail(utf8("why")). Nothing of the batch
   * counts then. To refuse one record, use Record.reject. */
  fail(reason: Ref): i32 {
    this.error = reason;
    return 1;
  }

  get isTick(): bool { return (this.flags & 1) != 0; }

  /** The input record i. */
  record(i: u32): Record { return changetype<Record>(<usize>(this.rows + i * rowSize)); }

  /** Says that the output is what is kept and nothing else; `keep` implies it. */
  filter(): void { if (kept < 0) kept = 0; }

  /** Keeps the input record i, in the order of the records. What is not kept is
   * filtered. */
  keep(i: u32): void {
    this.filter();
    if (<u32>kept != i) memory.copy(changetype<usize>(this.record(kept)), changetype<usize>(this.record(i)), rowSize);
    kept++;
  }

  /** Says that the output is what is emitted and nothing else; `emit` implies it. */
  collect(): void {
    if (outRows) return;
    outRoom = max(this.length, 16);
    outRows = alloc(outRoom * rowSize);
  }

  private next(): usize {
    this.collect();
    if (outN == outRoom) {
      const rows = alloc(2 * outRoom * rowSize);
      memory.copy(rows, outRows, outN * rowSize);
      outRows = rows;
      outRoom *= 2;
    }
    return outRows + outN++ * rowSize;
  }

  /** Adds a copy of a record and returns it. It may be changed until the next one is
   * added. */
  emit(r: Record): Record {
    const to = this.next();
    memory.copy(to, changetype<usize>(r), rowSize);
    // @ts-ignore: private
    r.share();
    return changetype<Record>(to);
  }

  /** Adds a record that derives from no input record. */
  emitNew(): Record {
    const to = this.next();
    memory.fill(to, 0, rowSize);
    const r = changetype<Record>(to);
    r.index = NO_INDEX;
    r.eventTime = this.time;
    r.ingestTime = this.time;
    return r;
  }
}
