/** The functions of the host (docs/abi.md, section 6). */
import { alloc } from "./memory";
import { Ref, ptrOf, lenOf, refOf, text, utf8, keepRef } from "./text";

// @ts-ignore: decorator
@external("edgehost", "log") declare function hostLog(level: u32, ptr: usize, len: u32): i32;
// @ts-ignore: decorator
@external("edgehost", "config_get") declare function hostConfigGet(key: usize, keyLen: u32, buf: usize, len: u32): i32;
// @ts-ignore: decorator
@external("edgehost", "output") declare function hostOutput(name: usize, len: u32): i32;
// @ts-ignore: decorator
@external("edgehost", "features") declare function hostFeatures(): i64;
// @ts-ignore: decorator
@external("edgehost", "kv_get") declare function hostKVGet(key: usize, keyLen: u32, buf: usize, len: u32): i32;
// @ts-ignore: decorator
@external("edgehost", "kv_set") declare function hostKVSet(key: usize, keyLen: u32, value: usize, len: u32, ttlMs: i64): i32;
// @ts-ignore: decorator
@external("edgehost", "kv_delete") declare function hostKVDelete(key: usize, keyLen: u32): i32;
// @ts-ignore: decorator
@external("edgehost", "metric") declare function hostMetric(kind: u32, name: usize, len: u32): i32;
// @ts-ignore: decorator
@external("edgehost", "metric_add") declare function hostMetricAdd(id: i32, delta: f64): i32;
// @ts-ignore: decorator
@external("edgehost", "metric_set") declare function hostMetricSet(id: i32, value: f64): i32;
// @ts-ignore: decorator
@external("wasi_snapshot_preview1", "fd_write") declare function fdWrite(fd: i32, iovs: usize, n: u32, written: usize): i32;

export enum Level { Debug, Info, Warn, Error }

/** What host functions return below 0. */
export enum Errno { NotFound = -1, Memory = -2, TooLarge = -3, Denied = -4, Invalid = -5 }

/** What a look-up returns that finds nothing; an empty text is another Ref. */
export const NOTHING: Ref = 0xffff_ffff;

/** Writes a line to the log of edgehost. */
export function log(level: u32, line: Ref): void { hostLog(level, ptrOf(line), lenOf(line)); }

let refused = false;

export function stderr(line: Ref): void {
  const iov = memory.data(16);
  store<u32>(iov, <u32>ptrOf(line));
  store<u32>(iov, lenOf(line), 4);
  fdWrite(2, iov, 1, iov + 8);
}

/** Makes edgehost refuse the deployment with a reason. For edgehost_init. */
export function refuse(reason: string): void {
  stderr(utf8(reason + "\n"));
  refused = true;
}

/** What edgehost_init returns: 0, or 1 when something was refused. */
export function started(): i32 { return refused ? 1 : 0; }

/** Reads a value of a length that is not known; it lives until the next call. */
function fetch(state: bool, key: Ref): Ref {
  let size: u32 = 256;
  while (true) {
    const buf = alloc(size);
    const n = state
      ? hostKVGet(ptrOf(key), lenOf(key), buf, size)
      : hostConfigGet(ptrOf(key), lenOf(key), buf, size);
    if (n < 0) return NOTHING;
    if (<u32>n <= size) return refOf(buf, n);
    size = n;
  }
}

/** A value of the deployment's configuration, empty when the key is not set. It lives
 * as long as the module. */
export function config(key: string): Ref {
  const v = fetch(false, utf8(key));
  return v == NOTHING ? 0 : keepRef(v);
}

export function hasConfig(key: string): bool { return fetch(false, utf8(key)) != NOTHING; }

/** A decimal number such as -12.5e3; NaN for anything else. */
export function parseNumber(s: string): f64 {
  let i = 0, digits = 0, dots = 0;
  const n = s.length;
  if (i < n && (s.charCodeAt(i) == 0x2d || s.charCodeAt(i) == 0x2b)) i++;
  for (; i < n; i++) {
    const c = s.charCodeAt(i);
    if (c >= 0x30 && c <= 0x39) digits++;
    else if (c != 0x2e || ++dots > 1) break;
  }
  if (i < n && digits > 0 && (s.charCodeAt(i) | 0x20) == 0x65) {
    i++;
    if (i < n && (s.charCodeAt(i) == 0x2d || s.charCodeAt(i) == 0x2b)) i++;
    digits = 0;
    for (; i < n && s.charCodeAt(i) >= 0x30 && s.charCodeAt(i) <= 0x39; i++) digits++;
  }
  return i == n && digits > 0 ? F64.parseFloat(s) : NaN;
}

/** A value of the configuration as a number. One that is no number refuses the
 * deployment. */
export function configNumber(key: string, fallback: f64): f64 {
  const v = fetch(false, utf8(key));
  if (v == NOTHING) return fallback;
  const n = parseNumber(text(v));
  if (!isNaN(n)) return n;
  refuse("config key " + key + ": " + text(v) + " is no number");
  return fallback;
}

/** The handle of an output for Record.output. A name that the deployment does not
 * have refuses it. */
export function output(name: string): u32 {
  const r = utf8(name);
  const handle = hostOutput(ptrOf(r), lenOf(r));
  if (handle >= 0) return handle;
  refuse("output " + name + " is not configured for this module");
  return 0;
}

/** The bits of what the host offers: 1 kv, 2 metrics, 4 ticks. */
export function features(): i64 { return hostFeatures(); }

/** The value of a key of the module's state, or NOTHING; it lives until the next call. */
export function kvGet(key: Ref): Ref { return fetch(true, key); }

/** Sets a key. It is committed with the records of the batch, or not at all. ttlMs 0
 * keeps it for ever. Below 0 is an Errno. */
export function kvSet(key: Ref, value: Ref, ttlMs: i64 = 0): i32 {
  return hostKVSet(ptrOf(key), lenOf(key), ptrOf(value), lenOf(value), ttlMs);
}

/** Removes a key, as kvSet sets one. */
export function kvDelete(key: Ref): i32 { return hostKVDelete(ptrOf(key), lenOf(key)); }

/** A metric that only grows. Its name is made of letters, digits and _. */
export class Counter {
  private id: i32;
  constructor(name: string) {
    const r = utf8(name);
    this.id = hostMetric(0, ptrOf(r), lenOf(r));
  }
  /** Adds what is not below 0. It counts when the batch succeeds. */
  add(delta: f64): void { hostMetricAdd(this.id, delta); }
}

/** A metric that is set. */
export class Gauge {
  private id: i32;
  constructor(name: string) {
    const r = utf8(name);
    this.id = hostMetric(1, ptrOf(r), lenOf(r));
  }
  /** Sets the value. It counts when the batch succeeds. */
  set(value: f64): void { hostMetricSet(this.id, value); }
}

/** What asc calls when an assertion fails, with --use abort=assembly/host/aborted: the
 * words go to the host, which reports them with the trap. */
export function aborted(message: string | null, file: string | null, line: u32, column: u32): void {
  let words = message ? message : "abort";
  if (file) words += " at " + file + ":" + line.toString() + ":" + column.toString();
  stderr(utf8(words + "\n"));
  unreachable();
}
