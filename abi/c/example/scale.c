/* Scale multiplies every number by a factor and adds an offset. */
#include "../edgehost.h"

static double factor, offset;
static eh_str unit, prefix;

EDGEHOST_INIT() {
    factor = eh_config_number(EH_STR("factor"), 1);
    offset = eh_config_number(EH_STR("offset"), 0);
    unit = eh_config(EH_STR("unit"));
    prefix = eh_config(EH_STR("prefix"));
}

EDGEHOST_PROCESS(b) {
    for (uint32_t i = 0; i < b->n_rows; i++) {
        eh_row *r = eh_row_at(b, i);
        double v;
        if (eh_number(eh_get(r), &v)) {
            eh_set(r, eh_float(v * factor + offset));
            if (unit.len)
                eh_attr_set(b, r, EH_STR("unit"), eh_string(unit));
        }
        if (prefix.len)
            r->address = eh_ref_of(eh_concat(prefix, eh_text(r->address)));
    }
    return 0;
}
