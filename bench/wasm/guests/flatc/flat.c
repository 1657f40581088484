// The flat C guest of the benchmark.
#include "edgehost.h"

static char op;
static const eh_str prefix = {"site/", 5};

EDGEHOST_INIT() { op = eh_config(EH_STR("op")).ptr[0]; }

EDGEHOST_PROCESS(b) {
    uint32_t n = 0;
    double v;
    switch (op) {
    case 'f':
        for (uint32_t i = 0; i < b->n_rows; i++) {
            eh_value x = eh_get(eh_row_at(b, i));
            if (x.kind != EH_FLOAT || (eh_number(x, &v) && v > 50))
                eh_keep(b, i, &n);
        }
        b->n_out = n;
        break;
    case 's':
        for (uint32_t i = 0; i < b->n_rows; i++) {
            eh_row *r = eh_row_at(b, i);
            eh_value x = eh_get(r);
            if (x.kind == EH_FLOAT && eh_number(x, &v))
                eh_set(r, eh_float(v * 1.8 + 32));
            r->address = eh_ref_of(eh_concat(prefix, eh_text(r->address)));
        }
        break;
    }
    return 0;
}
