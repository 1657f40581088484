// What a module must not be able to do to its host, by the config key op. A batch
// of one record passes.
#include "edgehost.h"

static char op;
static volatile uint32_t sink;

EDGEHOST_INIT() { op = eh_config(EH_STR("op")).ptr[0]; }

__attribute__((noinline)) static uint32_t tree(uint32_t n) {
    sink++;
    return n ? tree(n - 1) + tree(n - 1) : 1;
}

__attribute__((noinline)) static uint32_t deep(uint32_t n) {
    sink++;
    return deep(n + 1) + sink;
}

EDGEHOST_PROCESS(b) {
    if (b->n_rows < 2)
        return 0;
    switch (op) {
    case 'l':
        for (;;)
            sink++;
    case 't': return (int32_t)tree(60);
    case 'r': return (int32_t)deep(0);
    case 'f': {
        uint32_t at = (uint32_t)__builtin_wasm_memory_grow(0, 256) * 65536;
        for (;;)
            __builtin_memset((void *)(uintptr_t)at, (int)sink++, 256 * 65536);
    }
    }
    return 0;
}
