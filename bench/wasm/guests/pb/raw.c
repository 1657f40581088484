// The protobuf guest without any framework: it measures metering on code that
// decodes and encodes.
#include "pb.h"

static uint8_t in[1 << 20], out[2 << 20];

__attribute__((export_name("input"))) uint8_t *input(void) { return in; }
__attribute__((export_name("output"))) uint8_t *output(void) { return out; }
__attribute__((export_name("run"))) uint32_t run(uint32_t op, uint32_t n) { return transform((uint8_t)op, in, n, out); }
__attribute__((export_name("spin"))) uint64_t spin(uint64_t n) {
    uint64_t x = 1;
    for (uint64_t i = 0; i < n; i++)
        x = x * 6364136223846793005u + 1442695040888963407u; // a loop of registers
    return x;
}
