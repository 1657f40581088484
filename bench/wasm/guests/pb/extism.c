// The Extism C guest: the imports as Extism's C PDK uses them, 8 bytes a call.
#include "pb.h"

#define ENV(name) __attribute__((import_module("extism:host/env"), import_name(name)))
ENV("input_length") uint64_t input_length(void);
ENV("input_load_u8") uint32_t input_load_u8(uint64_t at);
ENV("input_load_u64") uint64_t input_load_u64(uint64_t at);
ENV("alloc") uint64_t ext_alloc(uint64_t n);
ENV("store_u8") void store_u8(uint64_t at, uint32_t v);
ENV("store_u64") void store_u64(uint64_t at, uint64_t v);
ENV("output_set") void output_set(uint64_t at, uint64_t n);

static uint8_t in[1 << 20], out[2 << 20];

static int32_t run(uint8_t op) {
    uint32_t n = (uint32_t)input_length(), i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t v = input_load_u64(i);
        __builtin_memcpy(in + i, &v, 8);
    }
    for (; i < n; i++)
        in[i] = (uint8_t)input_load_u8(i);
    n = transform(op, in, n, out);
    uint64_t to = ext_alloc(n);
    for (i = 0; i + 8 <= n; i += 8) {
        uint64_t v;
        __builtin_memcpy(&v, out + i, 8);
        store_u64(to + i, v);
    }
    for (; i < n; i++)
        store_u8(to + i, out[i]);
    output_set(to, n);
    return 0;
}

__attribute__((export_name("pass"))) int32_t pass(void) { return run('p'); }
__attribute__((export_name("filter"))) int32_t filter(void) { return run('f'); }
__attribute__((export_name("scale"))) int32_t scale(void) { return run('s'); }
