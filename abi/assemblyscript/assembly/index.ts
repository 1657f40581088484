/**
 * Modules for edgehost in AssemblyScript. docs/abi.md is the contract.
 *
 *     import { Batch } from "edgehost/assembly";
 *     export { edgehost_abi_v1, edgehost_alloc } from "edgehost/assembly";
 *
 *     export function edgehost_process(at: usize): i32 {
 *       const batch = Batch.begin(at);
 *       for (let i: u32 = 0; i < batch.length; i++) {
 *         const r = batch.record(i);
 *         if (r.isNumber) r.setFloat(r.number * 1.8 + 32);
 *       }
 *       return batch.end();
 *     }
 *
 * A Record is a view of a row in the module's memory, which is edited in place:
 * nothing is decoded. Text is a Ref, as it lies there: UTF-8, an address and a
 * length in one number. `keep` makes one that lives as long as the module, `utf8`
 * and `concat` make one that lives until the next call; `text` makes a string.
 */
export { Ref, text, utf8, keep, concat, equal } from "./text";
export { Batch, Record, Attr, Kind, Protocol, NO_INDEX } from "./record";
export {
  Level, Errno, Counter, Gauge, log, config, hasConfig, configNumber, output, features, refuse, started,
  kvGet, kvSet, kvDelete, NOTHING, parseNumber,
} from "./host";
export { edgehost_alloc, edgehost_abi_v1 } from "./memory";
