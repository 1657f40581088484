// The flat AssemblyScript guest of the benchmark, on the bare record ABI v1.

// @ts-ignore: decorators are AssemblyScript's
@external("edgehost", "config_get")
declare function configGet(key: usize, n: u32, buf: usize, room: u32): i32;

const FLOAT: u8 = 4;
const prefix = memory.data<u8>([115, 105, 116, 101, 47]); // site/
const opKey = memory.data<u8>([111, 112]);
const opBuf = memory.data(8);

let op: u8 = 0;
let arena: usize = 0, arenaSize: u32 = 0;
let texts: usize = 0, textsSize: u32 = 0, textsUsed: u32 = 0;

function pages(size: u32): usize {
  return (<usize>memory.grow((size + 65535) >> 16)) << 16;
}

function text(n: u32): usize {
  if (textsUsed + n > textsSize) { // what is there stays where rows refer to it
    textsSize = 4 * (n + 65536);
    texts = pages(textsSize);
    textsUsed = 0;
  }
  textsUsed += n;
  return texts + textsUsed - n;
}

export function edgehost_abi_v1(): void {}

export function edgehost_init(): i32 {
  configGet(opKey, 2, opBuf, 8);
  op = load<u8>(opBuf);
  return 0;
}

export function edgehost_alloc(size: u32): usize {
  if (size > arenaSize) {
    arena = pages(size);
    arenaSize = size;
  }
  return arena;
}

export function edgehost_process(b: usize): i32 {
  const size = load<u32>(b, 8), rows = load<u32>(b, 16), nRows = load<u32>(b, 20);
  textsUsed = 0;
  if (op == 0x66) {
    let n: u32 = 0;
    for (let i: u32 = 0; i < nRows; i++) {
      const r = rows + i * size;
      if (load<u8>(r, 68) != FLOAT || load<f64>(r, 16) > 50) {
        if (i != n) memory.copy(rows + n * size, r, size);
        n++;
      }
    }
    store<u32>(b, n, 28);
  } else if (op == 0x73) {
    for (let i: u32 = 0; i < nRows; i++) {
      const r = rows + i * size;
      if (load<u8>(r, 68) == FLOAT) store<f64>(r, load<f64>(r, 16) * 1.8 + 32, 16);
      const len = load<u32>(r, 36);
      const to = text(len + 5);
      memory.copy(to, prefix, 5);
      memory.copy(to + 5, load<u32>(r, 32), len);
      store<u32>(r, to, 32);
      store<u32>(r, len + 5, 36);
    }
  }
  return 0;
}
