/* The module that host/sandbox/sdk_test.go runs to check this SDK: it does what the
 * configuration key "op" says. The other SDKs have the same one. */
#include "../edgehost.h"

static eh_str op;
static uint32_t second;
static int32_t seen, last;

static bool is(const char *name) {
    uint32_t n = 0;
    while (name[n])
        n++;
    return eh_equal(op, (eh_str){name, n});
}

EDGEHOST_INIT() {
    static const char *const ops[] = {"pass", "copy", "edit", "attrs", "filter", "reject", "route", "fan", "grow", "share", "trap", "fail", "state", "parse"};
    op = eh_config(EH_STR("op"));
    bool known = false;
    for (uint32_t i = 0; i < sizeof ops / sizeof *ops; i++)
        known |= is(ops[i]);
    if (!known)
        eh_refuse(eh_concat(EH_STR("no such op: "), op));
    if (is("route"))
        second = eh_output(EH_STR("second"));
    if (is("state")) {
        seen = eh_counter(EH_STR("seen"));
        last = eh_gauge(EH_STR("last"));
    }
}

static eh_value copy_value(eh_value v) {
    eh_str s;
    if (!eh_value_text(v, &s))
        return v;
    s = eh_copy(s);
    return v.kind == EH_STRING ? eh_string(s) : v.kind == EH_BYTES ? eh_bytes(s) : eh_json(s);
}

static void copy(eh_batch *b) {
    eh_out out = eh_out_begin(b);
    for (uint32_t i = 0; i < b->n_rows; i++) {
        const eh_row *r = eh_row_at(b, i);
        eh_row *n = eh_emit_new(&out);
        n->event_time = r->event_time;
        n->ingest_time = r->ingest_time;
        n->source = eh_ref_of(eh_copy(eh_text(r->source)));
        n->address = eh_ref_of(eh_copy(eh_text(r->address)));
        n->status = r->status;
        eh_set(n, copy_value(eh_get(r)));
        for (uint32_t k = 0; k < r->attrs.len; k++) {
            const eh_attr *a = eh_attr_at(b, r, k);
            eh_attr_set(b, n, eh_copy(eh_text(a->key)), copy_value((eh_value){a->value, a->kind}));
        }
    }
    eh_out_end(&out);
}

static eh_value edit_value(eh_value v) {
    eh_str s = {0, 0};
    double d;
    eh_value_text(v, &s);
    switch (v.kind) {
    case EH_NONE: return eh_int(1);
    case EH_BOOL: return eh_bool(!v.bits);
    case EH_INT: return eh_int((int64_t)(v.bits * 2));
    case EH_UINT: return eh_uint(v.bits / 2);
    case EH_FLOAT: return eh_number(v, &d) ? eh_float(d * 2) : eh_none();
    case EH_STRING: return eh_string(eh_concat(s, s));
    case EH_BYTES: return eh_bytes(eh_concat(s, s));
    }
    return eh_json(eh_concat(eh_concat(EH_STR("{\"was\":"), s), EH_STR("}")));
}

static void edit(eh_row *r) {
    r->event_time += 1;
    r->ingest_time += 2;
    r->address = r->source;
    r->source = eh_ref_of(eh_concat(EH_STR("new "), eh_text(r->source)));
    r->status = 0x80000000;
    eh_set(r, edit_value(eh_get(r)));
}

static void attrs(const eh_batch *b, eh_row *r) {
    eh_attr_set(b, r, EH_STR("unit"), eh_string(EH_STR("mbar")));
    eh_attr_set(b, r, EH_STR("x"), eh_float(1));
    eh_attr_set(b, r, EH_STR("x"), eh_float(2));
    eh_attr_set(b, r, EH_STR("y"), eh_string(EH_STR("why")));
    eh_attr_set(b, r, EH_STR("z"), eh_bool(true));
    eh_attr_del(b, r, EH_STR("qos"));
    eh_attr_del(b, r, EH_STR("nothing"));
}

static void fan(eh_batch *b, uint32_t times) {
    eh_out out = eh_out_begin(b);
    for (uint32_t i = 0; i < b->n_rows; i++) {
        const eh_row *r = eh_row_at(b, i);
        if (r->kind == EH_NONE)
            continue;
        eh_emit(&out, r);
        for (uint32_t k = 1; k < times; k++) {
            eh_row *second = eh_emit(&out, r);
            second->address = eh_ref_of(eh_concat(eh_text(r->address), EH_STR("/2")));
            eh_attr_set(b, second, EH_STR("copy"), eh_int(i));
        }
    }
    eh_out_end(&out);
}

/* share edits attributes of rows that were emitted before. */
static void share(eh_batch *b) {
    eh_out out = eh_out_begin(b);
    for (uint32_t i = 0; i < b->n_rows; i++) {
        eh_row *r = eh_row_at(b, i);
        eh_attr_set(b, r, EH_STR("copy"), eh_int(0));
        eh_emit(&out, r);
        eh_attr_set(b, r, EH_STR("copy"), eh_int(1));
        eh_row *second = eh_emit(&out, r);
        eh_attr_set(b, second, EH_STR("copy"), eh_int(i));
        eh_attr_del(b, second, EH_STR("qos"));
        eh_attr_set(b, r, EH_STR("late"), eh_bool(true));
        eh_attr_del(b, r, EH_STR("copy"));
    }
    eh_out_end(&out);
}

static void state(eh_batch *b) {
    eh_str was = {0, 0};
    uint64_t *count = eh_alloc(sizeof *count);
    *count = b->n_rows;
    if (eh_kv_get(EH_STR("count"), &was) && was.len == 8) {
        uint64_t n;
        __builtin_memcpy(&n, was.ptr, 8);
        *count += n;
    }
    eh_kv_set(EH_STR("count"), (eh_str){(const char *)count, 8}, 60000);
    eh_kv_delete(EH_STR("old"));
    eh_metric_add(seen, b->n_rows);
    eh_metric_set(last, (double)*count);
    eh_log(EH_WARN, EH_STR("state kept"));
    for (uint32_t i = 0; i < b->n_rows; i++)
        eh_attr_set(b, eh_row_at(b, i), EH_STR("count"), eh_bytes(was));
}

EDGEHOST_PROCESS(b) {
    uint32_t n = 0;
    if (is("copy"))
        copy(b);
    if (is("fan") || is("grow"))
        fan(b, is("fan") ? 2 : 3);
    if (is("share"))
        share(b);
    if (is("trap"))
        __builtin_trap();
    if (is("state"))
        state(b);
    if (is("fail"))
        return eh_fail(b, eh_concat(EH_STR("refused by "), b->n_rows ? eh_text(eh_row_at(b, 0)->source) : EH_STR("nobody")));
    for (uint32_t i = 0; i < b->n_rows; i++) {
        eh_row *r = eh_row_at(b, i);
        double d;
        eh_str s;
        if (is("edit"))
            edit(r);
        if (is("attrs"))
            attrs(b, r);
        if (is("filter") && i % 2)
            eh_keep(b, i, &n);
        if (is("reject") && r->kind == EH_STRING)
            eh_reject(r, eh_concat(EH_STR("no text: "), eh_text(r->address)));
        if (is("route") && i % 2)
            r->output = second;
        if (is("parse") && eh_value_text(eh_get(r), &s))
            eh_set(r, eh_parse(s, &d) ? eh_float(d) : eh_none());
    }
    if (is("filter"))
        b->n_out = n;
    return 0;
}

EDGEHOST_TICK(b) {
    eh_out out = eh_out_begin(b);
    eh_row *r = eh_emit_new(&out);
    r->event_time = b->time - 1;
    r->source = eh_ref_of(EH_STR("tick"));
    r->address = eh_ref_of(EH_STR("t"));
    eh_set(r, eh_float((double)b->seq));
    eh_attr_set(b, r, EH_STR("n"), eh_uint(b->seq));
    eh_out_end(&out);
    return 0;
}

EDGEHOST_STOP() { eh_log(EH_INFO, EH_STR("stopped")); }
