package zerobus

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func valid() Config {
	return Config{
		WorkspaceHost: "https://dbc-a1b2c3d4-e5f6.cloud.databricks.com", ZerobusEndpoint: "1234567890123456.zerobus.us-west-2.cloud.databricks.com",
		Auth: Auth{ClientID: "id", ClientSecret: "secret"}, Target: Target{"iot_data", "bronze", "sensor_events"},
	}
}

// A44 to A51.
func TestConfig(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config)
		path   string // "" is valid
		want   string
	}{
		"aws": {func(*Config) {}, "", ""},
		"document": {func(c *Config) {
			c.WorkspaceHost, c.ZerobusEndpoint = "https://your-workspace.cloud.databricks.com", "your-endpoint.zerobus.region.cloud.databricks.com"
		}, "", ""},
		"no scheme":            {func(c *Config) { c.WorkspaceHost = "dbc-a1b2c3d4-e5f6.cloud.databricks.com/" }, "", ""},
		"endpoint with scheme": {func(c *Config) { c.ZerobusEndpoint = "https://" + c.ZerobusEndpoint + ":443" }, "", ""},
		"azure": {func(c *Config) {
			c.WorkspaceHost, c.ZerobusEndpoint = "adb-77.8.azuredatabricks.net", "77.zerobus.westeurope.azuredatabricks.net"
		}, "", ""},
		"gcp": {func(c *Config) {
			c.WorkspaceHost, c.ZerobusEndpoint = "77.8.gcp.databricks.com", "77.zerobus.europe-west1.gcp.databricks.com"
		}, "", ""},
		"azure, other workspace": {func(c *Config) {
			c.WorkspaceHost, c.ZerobusEndpoint = "adb-77.8.azuredatabricks.net", "78.zerobus.westeurope.azuredatabricks.net"
		}, "zerobus_endpoint", "workspace 78"},
		"emulator":                {func(c *Config) { c.WorkspaceHost, c.ZerobusEndpoint = "https://127.0.0.1:19080", "127.0.0.1:19443" }, "", ""},
		"no workspace":            {func(c *Config) { c.WorkspaceHost = "" }, "workspace_host", "missing"},
		"http":                    {func(c *Config) { c.ZerobusEndpoint = "http://x.zerobus.y.cloud.databricks.com" }, "zerobus_endpoint", "https only"},
		"workspace as endpoint":   {func(c *Config) { c.ZerobusEndpoint = c.WorkspaceHost }, "zerobus_endpoint", "is a workspace"},
		"endpoint as workspace":   {func(c *Config) { c.WorkspaceHost = c.ZerobusEndpoint }, "workspace_host", "is an ingest endpoint"},
		"a path":                  {func(c *Config) { c.WorkspaceHost += "/sql" }, "workspace_host", "host and port"},
		"user info":               {func(c *Config) { c.WorkspaceHost = "https://u:canary@h.cloud.databricks.com" }, "workspace_host", "host and port"},
		"not an address":          {func(c *Config) { c.ZerobusEndpoint = "https://%zz" }, "zerobus_endpoint", "not an address"},
		"no id":                   {func(c *Config) { c.Auth.ClientID = "" }, "auth.client_id", "missing"},
		"no secret":               {func(c *Config) { c.Auth.ClientSecret = "" }, "auth.client_secret", "DATABRICKS_CLIENT_SECRET"},
		"no catalog":              {func(c *Config) { c.Target.Catalog = "" }, "target.catalog", "missing"},
		"schema is no identifier": {func(c *Config) { c.Target.Schema = "a.b" }, "target.schema", "identifier"},
		"table is no identifier":  {func(c *Config) { c.Target.Table = "sensor events" }, "target.table", "identifier"},
		"no CA file":              {func(c *Config) { c.CACertPath = "does-not-exist.pem" }, "ca_cert_path", "cannot read"},
	} {
		c := valid()
		tt.change(&c)
		errs := c.Validate()
		switch {
		case tt.path == "" && len(errs) > 0:
			t.Errorf("%s: %v", name, errs)
		case tt.path != "" && !slices.ContainsFunc(errs, func(e FieldError) bool { return e.Path == tt.path && strings.Contains(e.Msg, tt.want) }):
			t.Errorf("%s: %v, want %s: …%s…", name, errs, tt.path, tt.want)
		}
		for _, e := range errs {
			if strings.Contains(e.Error(), "canary") {
				t.Errorf("%s: a secret in %q", name, e)
			}
		}
	}
}

func TestNewChecksConfig(t *testing.T) {
	if _, err := New(Options{}); err == nil || !strings.Contains(err.Error(), "workspace_host") || !strings.Contains(err.Error(), "target.table") {
		t.Errorf("New: %v", err)
	}
	c := valid()
	c.Auth = Auth{} // they come from Options.Credentials
	if _, err := New(Options{Config: c}); err != nil {
		t.Errorf("New: %v", err)
	}
	c.CACertPath = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(c.CACertPath, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Config: c, Schema: Fixed(Schema{Table: "a.b.c", Columns: []Column{{Name: "a", Type: "INT", Number: 1}}}),
		Credentials: func() (string, string, error) { return "a", "b", nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "no PEM certificate") {
		t.Errorf("Open: %v", err)
	}
}

func TestSchemaOf(t *testing.T) {
	target := Target{"c", "s", "t"}
	s, errs := SchemaOf(target, "columns", []ColumnConfig{{Name: "at", Type: "timestamp", From: "event_time"}, {Name: "v", Type: "Decimal(10, 2)", From: "value", Required: true}})
	if len(errs) > 0 || s.Table != "c.s.t" || s.Columns[0] != (Column{Name: "at", Type: "TIMESTAMP", Number: 1, Nullable: true, From: "event_time"}) ||
		s.Columns[1] != (Column{Name: "v", Type: "DECIMAL", Number: 2, From: "value"}) {
		t.Errorf("%+v, %v", s, errs)
	}
	for name, tt := range map[string]struct {
		columns []ColumnConfig
		want    string
	}{
		"none":      {nil, "missing"},
		"type":      {[]ColumnConfig{{Name: "a", Type: "ARRAY<INT>"}}, "not supported"},
		"name":      {[]ColumnConfig{{Name: "a b", Type: "INT"}}, "identifier"},
		"twice":     {[]ColumnConfig{{Name: "a", Type: "INT"}, {Name: "A", Type: "INT"}}, "twice"},
		"too many":  {make([]ColumnConfig, 2001), "not supported"},
		"no type":   {[]ColumnConfig{{Name: "a"}}, "not supported"},
		"injection": {[]ColumnConfig{{Name: "a", Type: "INT(1); DROP TABLE x"}}, "not supported"},
	} {
		_, errs := SchemaOf(target, "columns", tt.columns)
		if len(errs) == 0 || !strings.Contains(errs[0].Error(), tt.want) || !strings.HasPrefix(errs[0].Path, "columns") {
			t.Errorf("%s: %v", name, errs)
		}
	}
}

func TestConfigPrintsNoSecret(t *testing.T) {
	c := valid()
	c.Auth.ClientSecret = "canary"
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, c); strings.Contains(text, "canary") || !strings.Contains(text, "[redacted]") {
			t.Errorf("%s: %s", format, text)
		}
	}
}
