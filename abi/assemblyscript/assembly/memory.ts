/** The memory of a call: what rows refer to lives until the next call begins. */

/** One piece of the memory that `alloc` cuts; the bytes follow it. Pieces are kept. */
@unmanaged class Chunk {
  next: Chunk | null;
  size: u32;
  used: u32;
  reserved: u32;
}

const HEAD: u32 = 16;
const PIECE: u32 = 32 << 10;

let chunks: Chunk | null = null;
let now: Chunk | null = null;
let arena: usize = 0;
let arenaSize: u32 = 0;

export function edgehost_abi_v1(): void {}

/** A batch that outgrows the arena gets a new one. */
export function edgehost_alloc(size: u32): usize {
  if (arena != 0 && size <= arenaSize) return arena;
  if (size > 0x3fff_0000) return 0;
  if (arena != 0) heap.free(arena);
  arenaSize = size + size / 4 + 64;
  arena = heap.alloc(arenaSize);
  return arena;
}

/** Frees what the last call allocated. */
export function begin(): void {
  let c: Chunk | null = chunks;
  while (c) {
    c.used = 0;
    c = c.next;
  }
  now = chunks;
}

/** Gives bytes, 8-aligned, until the next call. */
export function alloc(bytes: u32): usize {
  const size = (bytes + 7) & ~7;
  if (size < bytes) unreachable();
  let at: Chunk | null = now;
  while (at) {
    const c: Chunk = at;
    if (c.size - c.used >= size) {
      const p = changetype<usize>(c) + HEAD + c.used;
      c.used += size;
      now = c;
      return p;
    }
    at = c.next;
  }
  const room = max(PIECE, size + HEAD);
  const c = changetype<Chunk>(heap.alloc(room));
  c.next = chunks;
  c.size = room - HEAD;
  c.used = size;
  chunks = c;
  now = c;
  return changetype<usize>(c) + HEAD;
}

/** Whether an address is of `alloc`. */
export function isOurs(at: u32): bool {
  let c: Chunk | null = chunks;
  while (c) {
    if (at - <u32>(changetype<usize>(c) + HEAD) < c.used) return true;
    c = c.next;
  }
  return false;
}
