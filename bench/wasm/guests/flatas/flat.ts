// The flat AssemblyScript guest of the benchmark.
import { Batch, Kind, concat, config, keep, started } from "../../../../abi/assemblyscript/assembly";

export { edgehost_abi_v1, edgehost_alloc } from "../../../../abi/assemblyscript/assembly";

const PREFIX = keep("site/");

let op: u8 = 0;

export function edgehost_init(): i32 {
  op = load<u8>(<usize>(<u32>config("op")));
  return started();
}

export function edgehost_process(at: usize): i32 {
  const batch = Batch.begin(at);
  if (op == 0x66) {
    batch.filter();
    for (let i: u32 = 0; i < batch.length; i++) {
      const r = batch.record(i);
      if (r.kind != Kind.Float || r.number > 50) batch.keep(i);
    }
  } else if (op == 0x73) {
    for (let i: u32 = 0; i < batch.length; i++) {
      const r = batch.record(i);
      if (r.kind == Kind.Float) r.setFloat(r.number * 1.8 + 32);
      r.address = concat(PREFIX, r.address);
    }
  }
  return batch.end();
}
