import { alloc } from "./memory";

/** A span of the module's memory: the address in the low 32 bits, the length in the
 * high 32. Length 0 is empty. */
export type Ref = u64;

// @ts-ignore: decorator
@inline export function refOf(ptr: usize, len: u32): Ref { return <u64>ptr | (<u64>len << 32); }

// @ts-ignore: decorator
@inline export function ptrOf(r: Ref): usize { return <u32>r; }

// @ts-ignore: decorator
@inline export function lenOf(r: Ref): u32 { return <u32>(r >> 32); }

/** A string of what a Ref refers to. */
export function text(r: Ref): string {
  return String.UTF8.decodeUnsafe(ptrOf(r), lenOf(r));
}

/** UTF-8 that lives until the next call. */
export function utf8(s: string): Ref {
  const len = <u32>String.UTF8.byteLength(s);
  const p = alloc(len);
  String.UTF8.encodeUnsafe(changetype<usize>(s), s.length, p);
  return refOf(p, len);
}

/** UTF-8 that lives as long as the module. */
export function keep(s: string): Ref {
  const len = <u32>String.UTF8.byteLength(s);
  const p = heap.alloc(max(len, 1));
  String.UTF8.encodeUnsafe(changetype<usize>(s), s.length, p);
  return refOf(p, len);
}

/** A copy that lives as long as the module. */
export function keepRef(r: Ref): Ref {
  const p = heap.alloc(max(lenOf(r), 1));
  memory.copy(p, ptrOf(r), lenOf(r));
  return refOf(p, lenOf(r));
}

/** Both texts in one that lives until the next call. */
export function concat(a: Ref, b: Ref): Ref {
  const n = lenOf(a), m = lenOf(b);
  const p = alloc(n + m);
  memory.copy(p, ptrOf(a), n);
  memory.copy(p + n, ptrOf(b), m);
  return refOf(p, n + m);
}

export function equal(a: Ref, b: Ref): bool {
  if (a == b) return true;
  if (lenOf(a) != lenOf(b)) return false;
  return memory.compare(ptrOf(a), ptrOf(b), lenOf(a)) == 0;
}
