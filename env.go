package main

import (
	"fmt"
	"regexp"
	"strings"
)

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// expand puts the environment into a configured value: ${VAR} is the variable,
// which must be set; ${VAR:-text} is text where it is not set or empty; $$ is
// one $. Any other $ stands for itself, as in $share/ and $SYS/ topics. What a
// variable holds is not looked at again.
func expand(text string, lookup func(string) (string, bool)) (out string, expanded bool, err error) {
	var b strings.Builder
	for {
		i := strings.IndexByte(text, '$')
		if i < 0 || i == len(text)-1 {
			b.WriteString(text)
			return b.String(), expanded, nil
		}
		b.WriteString(text[:i])
		switch text[i+1] {
		case '$':
			b.WriteByte('$')
			text = text[i+2:]
			continue
		case '{':
		default:
			b.WriteByte('$')
			text = text[i+1:]
			continue
		}
		inside, rest, closed := strings.Cut(text[i+2:], "}")
		if !closed {
			return "", false, fmt.Errorf("${ is not closed; write ${NAME}, or $${ for the characters themselves")
		}
		value, err := variable(inside, lookup)
		if err != nil {
			return "", false, err
		}
		b.WriteString(value)
		expanded, text = true, rest
	}
}

func variable(inside string, lookup func(string) (string, bool)) (string, error) {
	name, fallback, hasFallback := strings.Cut(inside, ":-")
	if !variableName.MatchString(name) {
		return "", fmt.Errorf("${%s} is not a variable; write ${NAME} or ${NAME:-default}", inside)
	}
	value, set := lookup(name)
	switch {
	case hasFallback && value == "":
		return fallback, nil
	case !set:
		return "", fmt.Errorf("the environment variable %s is not set; set it, or write ${%s:-default}", name, name)
	}
	return value, nil
}
