package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/edgehost/edgehost/abi"
	"github.com/edgehost/edgehost/host/sandbox"
)

func moduleInspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show what a module is, and every reason why a host would refuse it",
		ArgsUsage: "FILE",
		Description: "Reads the file and runs nothing of it. A module that passes can still fail when it starts:\n" +
			"edgehost module test starts it.\n\n" +
			"Example:\n   edgehost module inspect scale.wasm",
		CustomHelpTemplate: cli.CommandHelpTemplate + "\nEXIT CODES:\n   0 a host would admit it   1 a host would refuse it   2 wrong usage\n",
		Flags:              []cli.Flag{jsonFlag()},
		Action:             moduleInspect,
	}
}

// inspectReport is what module inspect says.
type inspectReport struct {
	OK       bool     `json:"ok"`
	Reasons  []string `json:"reasons"`
	Advice   string   `json:"advice,omitempty"` // what its author can do
	Digest   string   `json:"digest"`
	Bytes    int      `json:"bytes"`
	ABI      string   `json:"abi,omitempty"` // the marker export
	Name     string   `json:"name,omitempty"`
	Built    []string `json:"built_with,omitempty"` // the module's own claim
	Features []string `json:"features,omitempty"`   // of the ABI that it uses

	MemoryMinPages uint32 `json:"memory_min_pages"`
	MemoryMaxPages uint32 `json:"memory_max_pages"` // 65536: as much as it may have
	Functions      int    `json:"functions"`
	Tables         int    `json:"tables"`
	CodeBytes      int    `json:"code_bytes"`
	DataBytes      int    `json:"data_bytes"`
	LargestBody    int    `json:"largest_function_bytes"`
	MeteredBytes   int    `json:"metered_bytes,omitempty"`
	SIMD           bool   `json:"simd"`
	Restores       bool   `json:"restores"` // after a fault, or a batch if strict, a snapshot is put back; else the module starts afresh

	Exports []inspectItem `json:"exports"`
	Imports []inspectItem `json:"imports"`
	Limits  inspectLimits `json:"limits"`
}

// inspectItem is one export or import.
type inspectItem struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
	Type string `json:"type"`
}

// inspectLimits are the limits that hold when the configuration sets none.
type inspectLimits struct {
	ModuleBytes    int   `json:"module_bytes"`
	MemoryPages    int   `json:"memory_pages"`
	Fuel           int64 `json:"fuel"`
	FuelPerRow     int64 `json:"fuel_per_row"`
	DeadlineMS     int64 `json:"deadline_ms"`
	InitDeadlineMS int64 `json:"init_deadline_ms"`
}

func moduleInspect(c *cli.Context) (err error) {
	if err := wantArgs(c, 1, 1, "one FILE"); err != nil {
		return err
	}
	path := c.Args().First()
	wasm, err := readWasm(c, path)
	if err != nil {
		return err
	}
	h, err := sandbox.New(sandbox.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	found, err := h.Inspect(c.Context, wasm)
	if err != nil {
		return err
	}
	r := inspectionOf(wasm, found)
	if !isWasm(wasm) {
		r.Reasons, r.Advice = []string{notModule(path, wasm).Error()}, ""
	}
	if err := show(c, r, func(w io.Writer) { printInspection(w, &r) }); err != nil {
		return err
	}
	if !r.OK {
		return fmt.Errorf("%s would be refused", path)
	}
	return nil
}

func inspectionOf(wasm []byte, found sandbox.Inspection) inspectReport {
	sum := sha256.Sum256(wasm)
	l := sandbox.DefaultLimits()
	r := inspectReport{OK: len(found.Reasons) == 0, Reasons: append([]string{}, found.Reasons...), Advice: adviceFor(wasm, found), Digest: hex.EncodeToString(sum[:]), Bytes: len(wasm),
		Exports: []inspectItem{}, Imports: []inspectItem{}, Limits: inspectLimits{l.ModuleBytes, int(l.MemoryPages), l.Fuel, l.FuelPerRow,
			l.Deadline.Milliseconds(), l.InitDeadline.Milliseconds()}}
	info := found.Info
	if info == nil {
		return r
	}
	r.Name, r.Built, r.SIMD = info.Name, info.Producers, info.SIMD
	r.MemoryMinPages, r.MemoryMaxPages, r.Functions, r.Tables = info.MemoryMin, info.MemoryMax, info.Funcs, info.Tables
	r.CodeBytes, r.DataBytes, r.LargestBody, r.MeteredBytes = info.CodeBytes, info.DataBytes, info.LargestBody, info.OutBytes
	r.Restores = !info.StatefulTables && !info.OpaqueGlobals
	for _, e := range info.Exports {
		r.Exports = append(r.Exports, inspectItem{e.Name, e.Kind, e.Type})
		if strings.HasPrefix(e.Name, "edgehost_abi_v") {
			r.ABI = e.Name
		}
		if e.Name == abi.ExportTick {
			r.uses("ticks")
		}
	}
	for _, i := range info.Imports {
		r.Imports = append(r.Imports, inspectItem{i.Module + "." + i.Name, i.Kind, i.Type})
		if i.Module == abi.ImportModule {
			r.uses(featureOf(i.Name))
		}
	}
	return r
}

func (r *inspectReport) uses(feature string) {
	if !slices.Contains(r.Features, feature) {
		r.Features = append(r.Features, feature)
	}
}

// featureOf names what an import of the module edgehost is for.
func featureOf(name string) string {
	switch word, _, _ := strings.Cut(name, "_"); word {
	case "config":
		return "configuration"
	case "output":
		return "outputs"
	case "metric":
		return "metrics"
	default:
		return word
	}
}

func printInspection(w io.Writer, r *inspectReport) {
	most := fmt.Sprintf("grows to %d at most", r.MemoryMaxPages)
	if r.MemoryMaxPages >= 1<<16 {
		most = "no maximum of its own"
	}
	after := "its memory is put back; with stateless: strict after every batch"
	if !r.Restores {
		after = "it starts afresh, with stateless: strict for every batch: it changes tables, or has globals that cannot be saved"
	}
	table(w, [][]string{
		{"digest", r.Digest},
		{"size", fmt.Sprintf("%s, code %s, data %s, %s at most allowed", size(uint64(r.Bytes)), size(uint64(r.CodeBytes)), size(uint64(r.DataBytes)), size(uint64(r.Limits.ModuleBytes)))},
		{"name", dash(r.Name)},
		{"built with", dash(strings.Join(r.Built, ", "))},
		{"abi", dash(r.ABI)},
		{"uses", dash(strings.Join(r.Features, ", "))},
		{"functions", fmt.Sprintf("%d, the largest %s", r.Functions, size(uint64(r.LargestBody)))},
		{"memory", fmt.Sprintf("starts with %d pages of 64 KiB, %s; a host gives %d unless memory_mb says otherwise", r.MemoryMinPages, most, r.Limits.MemoryPages)},
		{"simd", strconv.FormatBool(r.SIMD)},
		{"after a fault", after},
	})
	for _, list := range []struct {
		title string
		items []inspectItem
	}{{"EXPORT", r.Exports}, {"IMPORT", r.Imports}} {
		rows := [][]string{{list.title, "KIND", "TYPE"}}
		for _, i := range list.items {
			rows = append(rows, []string{i.Name, i.Kind, i.Type})
		}
		section(w, rows)
	}
	if r.OK {
		fmt.Fprintln(w, "\na host would admit it")
		return
	}
	fmt.Fprintln(w, "\na host would refuse it:")
	for _, reason := range r.Reasons {
		fmt.Fprintf(w, "- %s\n", reason)
	}
	if r.Advice != "" {
		fmt.Fprintf(w, "what to do: %s\n", r.Advice)
	}
}
