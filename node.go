package main

import (
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// scalarText returns the text of a single value as the file has it; quoted tells
// whether it stood in quotes or in a block of text.
func scalarText(n ast.Node) (text string, quoted, ok bool) {
	switch node := n.(type) {
	case *ast.StringNode:
		t := node.GetToken().Type
		return node.Value, t == token.SingleQuoteType || t == token.DoubleQuoteType, true
	case *ast.LiteralNode:
		return node.Value.Value, true, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode, *ast.NullNode:
		return node.GetToken().Value, false, true
	}
	return "", false, false
}

func isScalar(n ast.Node) bool { _, _, ok := scalarText(n); return ok }
func isNull(n ast.Node) bool   { return n.Type() == ast.NullType }

func describe(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a block of keys"
	case *ast.SequenceNode:
		return "a list"
	}
	return "a single value"
}

// position is where a reader sees n begin.
func position(n ast.Node) place {
	switch node := n.(type) {
	case *ast.MappingNode:
		if !node.IsFlowStyle && len(node.Values) > 0 {
			return position(node.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return position(node.Key)
	case *ast.LiteralNode:
		return tokenPlace(node.Start)
	}
	return tokenPlace(n.GetToken())
}

func tokenPlace(t *token.Token) place {
	if t == nil || t.Position == nil {
		return place{}
	}
	return place{line: t.Position.Line, col: t.Position.Column}
}
