package main

import (
	"cmp"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/edgehost/edgehost/sinks/zerobus"
)

// pipelinePlan is one pipeline with its globs and defaults resolved.
type pipelinePlan struct {
	Name    string
	Sources []string
	Modules []moduleConfig
	Bypass  bool
	// Targets is the destination of the records of each source, Target that of
	// records that a module made of none; Outputs those that modules may name.
	Targets map[string]zerobus.Target
	Target  zerobus.Target
	Outputs map[string]zerobus.Target
}

// plan resolves the pipelines of a checked configuration: those that it names,
// then one for each source that none of them reads, under the source's name.
func (c *config) plan() []pipelinePlan {
	var names []string
	for _, s := range c.Sources {
		names = append(names, s.Name)
	}
	var plans []pipelinePlan
	taken := map[string]bool{}
	for _, p := range c.Pipelines {
		var members []string
		for _, pattern := range p.Sources {
			matched, _ := match(pattern, names) // checked
			for _, name := range matched {
				if !taken[name] {
					taken[name] = true
					members = append(members, name)
				}
			}
		}
		plans = append(plans, c.planOne(p, members))
	}
	for _, name := range names {
		if !taken[name] {
			plans = append(plans, c.planOne(pipelineConfig{Name: name, OnMissing: onMissingHold}, []string{name}))
		}
	}
	return plans
}

func (c *config) planOne(p pipelineConfig, members []string) pipelinePlan {
	out := pipelinePlan{Name: p.Name, Sources: members, Modules: p.Modules, Bypass: p.OnMissing == onMissingBypass,
		Targets: map[string]zerobus.Target{}, Outputs: map[string]zerobus.Target{}}
	for _, name := range members {
		s := c.source(name)
		t := fill(s.Target, p.Target)
		if c.Zerobus != nil {
			t = fill(t, c.Zerobus.Target)
		}
		out.Targets[name] = fill(t, bronzeTarget(s.Protocol))
	}
	if len(members) > 0 {
		out.Target = out.Targets[members[0]]
	}
	base := c.outputBase(p)
	for name, t := range p.Outputs {
		out.Outputs[name] = fill(t, base)
	}
	return out
}

// bronzeTarget is the table of a protocol in the document's diagram.
func bronzeTarget(protocol string) zerobus.Target {
	t, _ := parseTarget(map[string]string{"mqtt": zerobus.MQTTTable, "modbus": zerobus.ModbusTable, "opcua": zerobus.OPCUATable}[protocol])
	return t
}

// targets returns every table that the plans deliver to, sorted by name.
func targets(plans []pipelinePlan) []zerobus.Target {
	all := map[string]zerobus.Target{}
	for _, p := range plans {
		for _, t := range p.Targets {
			all[t.String()] = t
		}
		for _, t := range p.Outputs {
			all[t.String()] = t
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b zerobus.Target) int { return cmp.Compare(a.String(), b.String()) })
}

// columns returns the columns that the configuration lists for a table, nil when
// it lists none.
func (c *config) columns(t zerobus.Target) []zerobus.ColumnConfig {
	for _, table := range c.Tables {
		if strings.EqualFold(table.Name, t.String()) {
			return table.Columns
		}
	}
	return nil
}

// credentials returns what the sink asks for every token. A secret in a file is
// read anew each time.
func (a authConfig) credentials() (id, secret string, err error) {
	if a.ClientSecretFile == "" {
		return a.ClientID, a.ClientSecret.Reveal(), nil
	}
	b, err := os.ReadFile(a.ClientSecretFile)
	if err != nil {
		return "", "", errors.Join(errors.New("read zerobus.auth.client_secret_file"), err)
	}
	secret = strings.TrimSpace(string(b))
	if secret == "" {
		return "", "", errors.New("zerobus.auth.client_secret_file " + a.ClientSecretFile + " is empty")
	}
	return a.ClientID, secret, nil
}

// errNoSink is why a host does not start without a place to deliver to.
var errNoSink = errors.New(`no sink is configured: records would have nowhere to go. Add one of these to the configuration:

  zerobus:                       # the service
    workspace_host: https://your-workspace.cloud.databricks.com
    zerobus_endpoint: <workspace-id>.zerobus.<region>.cloud.databricks.com
    auth: {client_id: "${DATABRICKS_CLIENT_ID}", client_secret: "${DATABRICKS_CLIENT_SECRET}"}

  sinks:                         # or files, one a table, to look at
    file: {dir: out}`)

// errNoSource is why a host does not start without anything to read.
var errNoSource = errors.New("no source is configured: there is nothing to read. Add at least one to sources: in the configuration (examples/connector.yaml shows each kind)")

// checkComplete says what serve needs that a fragment of a configuration may
// lack.
func (c *config) checkComplete() error {
	switch {
	case c.Zerobus == nil && c.Sinks.File == nil:
		return errNoSink
	case len(c.Sources) == 0:
		return errNoSource
	}
	return nil
}
