package zerobus

import (
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"
)

// Config is the zerobus section of the configuration.
type Config struct {
	// WorkspaceHost is the workspace that issues tokens, with or without
	// https://: https://dbc-a1b2.cloud.databricks.com (AWS),
	// adb-123.4.azuredatabricks.net (Azure), 123.4.gcp.databricks.com (GCP).
	WorkspaceHost string `yaml:"workspace_host"`
	// ZerobusEndpoint is where records go, with or without https://. Its first
	// label is the workspace id: <workspace-id>.zerobus.<region>.cloud.databricks.com,
	// also .azuredatabricks.net and .gcp.databricks.com. A port may follow.
	ZerobusEndpoint string `yaml:"zerobus_endpoint"`
	Auth            Auth   `yaml:"auth"`
	Target          Target `yaml:"target"`
	// CACertPath is a PEM file of the certificate authorities to trust instead of
	// the system's, for both addresses. Read at every open.
	CACertPath string `yaml:"ca_cert_path"`
}

// Auth names the service principal. Its values reach the sink through
// Options.Credentials, so that they can be rotated.
type Auth struct {
	ClientID     string `yaml:"client_id"`
	ClientSecret string `yaml:"client_secret"`
}

// String hides the secret, so that a Config can be printed.
func (a Auth) String() string { return "{client_id: " + a.ClientID + ", client_secret: [redacted]}" }

// GoString is String, for %#v.
func (a Auth) GoString() string { return a.String() }

// Target is a table of Unity Catalog.
type Target struct {
	Catalog string `yaml:"catalog"`
	Schema  string `yaml:"schema"`
	Table   string `yaml:"table"`
}

// String is the three-part name, catalog.schema.table.
func (t Target) String() string { return t.Catalog + "." + t.Schema + "." + t.Table }

// FieldError says what is wrong with one key of a configuration section.
type FieldError struct {
	Path string // below the section: target.catalog
	Msg  string // what is wrong and what to write instead
}

// Error is "path: message".
func (e FieldError) Error() string { return e.Path + ": " + e.Msg }

// identifier is what the service takes as a name of a catalog, schema, table or
// column: ASCII letters, digits and underscores.
var identifier = regexp.MustCompile(`^[A-Za-z0-9_]{1,255}$`)

// hostSuffixes are the domains of the three clouds.
var hostSuffixes = []string{".cloud.databricks.com", ".azuredatabricks.net", ".gcp.databricks.com"}

// Validate lists everything that is wrong with c. Target and Auth are checked
// too; a caller that routes every record to a table of its own, or keeps secrets
// elsewhere, checks with its own values filled in.
func (c Config) Validate() []FieldError {
	var errs []FieldError
	host := checkURL(&errs, "workspace_host", c.WorkspaceHost, "https://dbc-a1b2c3d4-e5f6.cloud.databricks.com")
	ep := checkURL(&errs, "zerobus_endpoint", c.ZerobusEndpoint, "1234567890123456.zerobus.us-west-2.cloud.databricks.com")
	if ep != nil && hasSuffix(ep.Hostname(), hostSuffixes) && !strings.Contains(ep.Hostname(), ".zerobus.") {
		errs = append(errs, FieldError{"zerobus_endpoint", fmt.Sprintf("%q is a workspace, not an ingest endpoint: write <workspace-id>.zerobus.<region>.<cloud domain>", ep.Hostname())})
	}
	if host != nil && strings.Contains(host.Hostname(), ".zerobus.") {
		errs = append(errs, FieldError{"workspace_host", fmt.Sprintf("%q is an ingest endpoint: write the address at which you open the workspace in a browser", host.Hostname())})
	}
	errs = append(errs, c.workspaceIDs(host, ep)...)
	if c.Auth.ClientID == "" {
		errs = append(errs, FieldError{"auth.client_id", "missing: write the application id of the service principal, or ${DATABRICKS_CLIENT_ID}"})
	}
	if c.Auth.ClientSecret == "" {
		errs = append(errs, FieldError{"auth.client_secret", "missing: write ${DATABRICKS_CLIENT_SECRET} and set that variable to an OAuth secret of the service principal"})
	}
	errs = append(errs, c.Target.Validate("target")...)
	if c.CACertPath != "" {
		if _, err := os.Stat(c.CACertPath); err != nil {
			errs = append(errs, FieldError{"ca_cert_path", fmt.Sprintf("cannot read the file: %v", err)})
		}
	}
	return errs
}

// workspaceIDs compares the workspace id of the endpoint with that of a
// workspace host which carries one (Azure and GCP: adb-<id>.<n>, <id>.<n>).
func (c Config) workspaceIDs(host, ep *url.URL) []FieldError {
	if host == nil || ep == nil || !strings.Contains(ep.Hostname(), ".zerobus.") {
		return nil
	}
	inEndpoint, _, _ := strings.Cut(ep.Hostname(), ".")
	inHost, _, _ := strings.Cut(host.Hostname(), ".")
	inHost = strings.TrimPrefix(inHost, "adb-")
	if digits.MatchString(inHost) && digits.MatchString(inEndpoint) && inHost != inEndpoint {
		return []FieldError{{"zerobus_endpoint", fmt.Sprintf("belongs to workspace %s, but workspace_host is workspace %s", inEndpoint, inHost)}}
	}
	return nil
}

var digits = regexp.MustCompile(`^[0-9]+$`)

// Validate lists what is wrong with t; path is where t stands in the file.
func (t Target) Validate(path string) []FieldError {
	var errs []FieldError
	for _, part := range []struct{ key, value string }{{"catalog", t.Catalog}, {"schema", t.Schema}, {"table", t.Table}} {
		if part.value == "" {
			errs = append(errs, FieldError{path + "." + part.key, "missing"})
		} else if !identifier.MatchString(part.value) {
			errs = append(errs, FieldError{path + "." + part.key, fmt.Sprintf("%q is not an identifier: ASCII letters, digits and underscores only", part.value)})
		}
	}
	return errs
}

// checkURL appends what is wrong with the address in raw and returns it parsed,
// nil when it is unusable.
func checkURL(errs *[]FieldError, path, raw, example string) *url.URL {
	fail := func(format string, args ...any) *url.URL {
		*errs = append(*errs, FieldError{path, fmt.Sprintf(format, args...)})
		return nil
	}
	if strings.TrimSpace(raw) == "" {
		return fail("missing: write it like %s", example)
	}
	u, err := url.Parse(withScheme(raw))
	switch {
	case err != nil || u.Hostname() == "":
		return fail("%q is not an address: write it like %s", raw, example)
	case u.Scheme != "https":
		return fail("%s:// is refused: records and secrets travel over https only", u.Scheme)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return fail("%q has more than host and port: write it like %s", u.Host, example)
	}
	return u
}

// withScheme adds https:// to an address without a scheme and drops a slash at
// the end.
func withScheme(addr string) string {
	addr = strings.TrimRight(strings.TrimSpace(addr), "/")
	if !strings.Contains(addr, "://") {
		return "https://" + addr
	}
	return addr
}

func hasSuffix(s string, suffixes []string) bool {
	for _, x := range suffixes {
		if strings.HasSuffix(s, x) {
			return true
		}
	}
	return false
}
