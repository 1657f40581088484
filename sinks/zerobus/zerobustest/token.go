package zerobustest

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"sync"
	"time"
)

// tokens are the tokens that were issued.
type tokens struct {
	mu   sync.Mutex
	byID map[string]issuedToken
}

// issuedToken is good for one table until it expires.
type issuedToken struct {
	table   string
	expires time.Time
}

// check says whether token may write to table: "" when it may.
func (t *tokens) check(token, table string) (refusal string, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	issued, known := t.byID[token]
	switch {
	case !known:
		return "the token was not issued here", false
	case time.Now().After(issued.expires):
		return "the token has expired", false
	case issued.table != table:
		return "the token is for table " + issued.table, true
	default:
		return "", true
	}
}

func (t *tokens) issue(table string, life time.Duration) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID == nil {
		t.byID = map[string]issuedToken{}
	}
	id := "emulated-" + rand.Text()
	t.byID[id] = issuedToken{table, time.Now().Add(life)}
	return id
}

// revoke makes every token unknown.
func (t *tokens) revoke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.byID)
}

// maxForm bounds a token request.
const maxForm = 64 << 10

// serveToken is POST /oidc/v1/token: client credentials in Basic form and exactly
// the four fields that the service wants.
func (e *Emulator) serveToken(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	id, secret, hasBasic := r.BasicAuth()
	if f, ok := e.knobs.takeToken(); ok {
		e.count.tokensRefused.Add(1)
		if f.RetryAfterS > 0 {
			w.Header().Set("Retry-After", fmt.Sprint(f.RetryAfterS))
		}
		description := "injected"
		if f.Echo {
			description = "no client " + id + " with " + secret
		}
		tokenError(w, f.Status, "injected_fault", description)
		return
	}
	refuse := func(status int, code, why string) {
		e.count.tokensRefused.Add(1)
		e.count.violation("token request: " + why)
		tokenError(w, status, code, why)
	}
	switch {
	case !hasBasic || id == "" || secret == "":
		refuse(http.StatusUnauthorized, "invalid_client", "no Basic credentials")
		return
	case e.cfg.ClientID != "" && (id != e.cfg.ClientID || secret != e.cfg.ClientSecret):
		e.count.tokensRefused.Add(1)
		tokenError(w, http.StatusUnauthorized, "invalid_client", "Client authentication failed")
		return
	}
	if ct, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || ct != "application/x-www-form-urlencoded" {
		refuse(http.StatusBadRequest, "invalid_request", "content type is not a form")
		return
	}
	if err := r.ParseForm(); err != nil {
		refuse(http.StatusBadRequest, "invalid_request", "unreadable form")
		return
	}
	table, why := e.checkForm(r.PostForm)
	if why != "" {
		refuse(http.StatusBadRequest, "invalid_request", why)
		return
	}
	e.count.tokensIssued.Add(1)
	writeJSON(w, http.StatusOK, map[string]any{
		"access_token": e.issued.issue(table, e.cfg.TokenLifetime), "token_type": "Bearer", "scope": "all-apis",
		"expires_in": int64(e.cfg.TokenLifetime.Seconds()),
	})
}

// checkForm returns the table that a token is wanted for, or what is wrong.
func (e *Emulator) checkForm(form map[string][]string) (table, why string) {
	want := map[string]string{"grant_type": "client_credentials", "scope": "all-apis", "resource": "", "authorization_details": ""}
	for key, values := range form {
		fixed, known := want[key]
		if !known || len(values) != 1 {
			return "", "unexpected or repeated field " + key
		}
		if fixed != "" && values[0] != fixed {
			return "", key + " is not " + fixed
		}
		delete(want, key)
	}
	for key := range want {
		return "", "missing field " + key
	}
	workspace, ok := strings.CutPrefix(form["resource"][0], "api://databricks/workspaces/")
	id, ok2 := strings.CutSuffix(workspace, "/zerobusDirectWriteApi")
	if !ok || !ok2 || !e.workspaceID(id) {
		return "", "resource " + form["resource"][0] + " is not the direct write API of this workspace"
	}
	return checkDetails(form["authorization_details"][0])
}

// detail is one entry of authorization_details.
type detail struct {
	Type       string   `json:"type"`
	ObjectType string   `json:"object_type"`
	Path       string   `json:"object_full_path"`
	Privileges []string `json:"privileges"`
	Operations []string `json:"operations"`
}

// checkDetails wants the three privileges of the vendor's clients for one table;
// operations is optional, since older clients lack it.
func checkDetails(text string) (table, why string) {
	var details []detail
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&details); err != nil || dec.More() {
		return "", "authorization_details is not the JSON array that is expected"
	}
	if len(details) != 3 {
		return "", fmt.Sprintf("authorization_details has %d entries instead of 3", len(details))
	}
	table = details[2].Path
	if !validTable(table) {
		return "", fmt.Sprintf("%q is not catalog.schema.table", table)
	}
	parts := strings.Split(table, ".")
	want := []struct {
		kind, path, privileges string
	}{
		{"CATALOG", parts[0], "USE CATALOG"}, {"SCHEMA", parts[0] + "." + parts[1], "USE SCHEMA"}, {"TABLE", table, "SELECT,MODIFY"},
	}
	for i, w := range want {
		d := details[i]
		if d.Type != "unity_catalog_privileges" || d.ObjectType != w.kind || d.Path != w.path || strings.Join(d.Privileges, ",") != w.privileges {
			return "", "authorization_details do not ask for " + w.privileges + " on " + w.path
		}
		if ops := strings.Join(d.Operations, ","); ops != "" && (i != 2 || ops != "zerobuswrite") {
			return "", "unexpected operations " + ops
		}
	}
	return table, ""
}

func tokenError(w http.ResponseWriter, status int, code, description string) {
	writeJSON(w, status, map[string]string{"error": code, "error_description": description})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone when this fails
}
