// Scale multiplies every number by a factor and adds an offset.
import { Batch, Ref, concat, config, configNumber, keep, started } from "../assembly";

export { edgehost_abi_v1, edgehost_alloc } from "../assembly";

const UNIT = keep("unit");

let factor: f64 = 1;
let offset: f64 = 0;
let unit: Ref = 0;
let prefix: Ref = 0;

export function edgehost_init(): i32 {
  factor = configNumber("factor", 1);
  offset = configNumber("offset", 0);
  unit = config("unit");
  prefix = config("prefix");
  return started();
}

export function edgehost_process(at: usize): i32 {
  const batch = Batch.begin(at);
  for (let i: u32 = 0; i < batch.length; i++) {
    const r = batch.record(i);
    if (r.isNumber) {
      r.setFloat(r.number * factor + offset);
      if (unit) r.setAttrText(UNIT, unit);
    }
    if (prefix) r.address = concat(prefix, r.address);
  }
  return batch.end();
}
