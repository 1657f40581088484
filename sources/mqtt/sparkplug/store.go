package sparkplug

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

// store is the directory of the tables, one file for each edge node; "" keeps
// nothing.
//
// The files survive kill -9 because they are replaced by a rename. They are not
// synced: what power loss takes costs a rebirth, and a table from disk is
// doubtful until the next birth anyhow.
type store string

// table is a file. It does not say who died: a death that the pipeline had not
// made durable comes again after a restart, and must find its metrics alive.
type table struct {
	Group    string             `json:"group"`
	Node     string             `json:"node"`
	BdSeq    uint64             `json:"bd_seq"`
	HasBdSeq bool               `json:"has_bd_seq"`
	Devices  map[string]*device `json:"devices"`
}

func (s store) path(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(string(s), hex.EncodeToString(sum[:16])+".json")
}

func (s store) load(log *slog.Logger) []*node {
	if s == "" {
		return nil
	}
	paths, err := filepath.Glob(filepath.Join(string(s), "*.json"))
	if err != nil {
		log.Warn("sparkplug: no table of edge nodes can be read", "error", err)
	}
	var out []*node
	for _, path := range paths {
		n, err := readTable(path)
		if err != nil {
			log.Warn("sparkplug: the table of an edge node cannot be read; it will be asked for a rebirth", "file", path, "error", err)
			continue
		}
		out = append(out, n)
	}
	return out
}

func readTable(path string) (*node, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var t table
	if err := json.Unmarshal(data, &t); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	if t.Node == "" || t.Devices == nil {
		return nil, errors.New("parse: names no edge node")
	}
	for name, d := range t.Devices {
		if d == nil {
			return nil, fmt.Errorf("parse: device %q is null", name)
		}
		d.Alive = true
	}
	return &node{group: t.Group, name: t.Node, born: true, bdSeq: t.BdSeq, hasBdSeq: t.HasBdSeq, devices: t.Devices}, nil
}

// Save writes the tables that changed. It is called before what the changes
// came with is called safe.
func (h *Host) Save() error {
	if h.files == "" {
		clear(h.dirty)
		return nil
	}
	for key, n := range h.dirty {
		if err := h.files.write(n); err != nil {
			return fmt.Errorf("save the aliases of edge node %s: %w", key, err)
		}
		delete(h.dirty, key)
	}
	return nil
}

func (s store) write(n *node) error {
	if err := os.MkdirAll(string(s), 0o700); err != nil {
		return err
	}
	data, err := json.Marshal(table{n.group, n.name, n.bdSeq, n.hasBdSeq, n.devices})
	if err != nil {
		return err
	}
	path := s.path(n.key())
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
