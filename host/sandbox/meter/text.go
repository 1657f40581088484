package meter

import (
	"fmt"
	"strings"
)

func (t funcType) String() string {
	return valueTypesText(t.params) + " -> " + valueTypesText(t.results)
}

func (t tableType) String() string { return valueTypeText(t.elem) + " " + t.limits.String() }

func (g globalType) String() string {
	if g.mutable {
		return "mut " + valueTypeText(g.value)
	}
	return valueTypeText(g.value)
}

func (l limits) String() string {
	if l.bounded {
		return fmt.Sprintf("%d..%d", l.min, l.max)
	}
	return fmt.Sprintf("%d..", l.min)
}

func valueTypesText(types []byte) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = valueTypeText(t)
	}
	return "(" + strings.Join(names, ", ") + ")"
}

func valueTypeText(t byte) string {
	switch t {
	case typeI32:
		return "i32"
	case typeI64:
		return "i64"
	case typeF32:
		return "f32"
	case typeF64:
		return "f64"
	case typeV128:
		return "v128"
	case typeFunc:
		return "funcref"
	}
	return "externref"
}
