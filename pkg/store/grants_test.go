package store

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

// documentedGrants are the rights that docs/operations.md has an operator give to a role.
func documentedGrants(t *testing.T, to, role string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var grants []string
	for block := range strings.SplitSeq(string(page), "```") {
		if sql, ok := strings.CutPrefix(block, "sql\n"); ok && strings.HasPrefix(sql, "GRANT ") && strings.Contains(sql, " TO "+to+";") {
			grants = append(grants, strings.NewReplacer(" TO "+to+";", " TO "+role+";", " FROM "+to+";", " FROM "+role+";").Replace(sql))
		}
	}
	if len(grants) != 1 {
		t.Fatalf("docs/operations.md has %d blocks of rights for %s", len(grants), to)
	}
	return grants[0]
}

// On a hardened database, where nobody may run a function unless told so, the documented rights are enough for everything that a
// gateway and its commands do, also with what a later migration makes.
func TestDocumentedGrantsAreEnough(t *testing.T) {
	t.Parallel()
	dsn := env.Postgres(t).NewDatabase(t)
	role := fmt.Sprintf("hardened_%d", time.Now().UnixNano())
	execSQL(t, dsn, `ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC; CREATE ROLE `+role+` LOGIN PASSWORD 's3cret'`)
	t.Cleanup(func() {
		execSQL(t, dsn, `ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC`)
		execSQL(t, dsn, `DROP OWNED BY `+role+`; DROP ROLE `+role)
	})
	prepare(t, dsn, textWorkspaces)
	execSQL(t, dsn, documentedGrants(t, "gateway", role))
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "s3cret")
	var c clock
	p := open(t, PostgresConfig{URL: u.String(), Limits: Limits{PerWorkspace: 5, PerSubject: 5}, Retention: time.Hour, Now: c.now})
	ctx := t.Context()
	steadily(t, p, &c, "gw-1", time.Minute)
	_, redeemed := p.Redeem(ctx, claims("t1", "ws-local"), session("s1"))
	lease, acquired := p.AcquireTunnel(ctx, "eice", "i-1", "gw-1", 20)
	_, idle := p.IdleTunnel(ctx, lease)
	_, vacated := p.VacateTunnel(ctx, "other", "gw-1")
	_, free := p.FreeTunnels(ctx, "eice", 20)
	_, listed := p.Sessions(ctx, SessionFilter{})
	_, abandoned := p.Abandoned(ctx, time.Minute, nil)
	_, replicas := p.Replicas(ctx)
	_, _, revoked := p.Revoke(ctx, Revocation{WorkspaceID: "ws-local"})
	_, kept := p.KeepHostKey(ctx, "i-1", "ssh-ed25519 AAAA")
	for what, err := range map[string]error{
		"ping": p.Ping(ctx), "redeem": redeemed, "heartbeat": p.Heartbeat(ctx, "gw-1", []string{"s1"}), "acquire": acquired, "idle": idle, "vacate": vacated,
		"free": free, "list": listed, "abandoned": abandoned, "close": p.CloseAbandoned(ctx, ReasonLost, time.Hour), "replicas": replicas, "revoke": revoked,
		"unreached": p.Unreached(ctx, claims("t", "ws-local"), "s1", ""), "trace": p.Trace(ctx, "s1", map[string]string{"a": "b"}),
		"release": p.ReleaseTunnel(ctx, lease), "finish": p.Finish(ctx, "s1", End{Reason: "exit"}), "settle": p.Settle(ctx, "s1", 1), "purge": p.Purge(ctx),
		"host key": kept,
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The role owns nothing and may change nothing else.
	if _, err := sqlDB(t, u.String()).Exec(`ALTER TABLE termgw.sessions ADD COLUMN x text`); err == nil {
		t.Error("the gateway's role may change the schema")
	}
	if _, err := sqlDB(t, u.String()).Exec(`INSERT INTO termgw.schema_migrations (version) VALUES ('x')`); err == nil {
		t.Error("the gateway's role may write the record of migrations")
	}
	execSQL(t, dsn, `CREATE TABLE termgw.later (x int); CREATE FUNCTION termgw.later() RETURNS int LANGUAGE sql AS 'SELECT 1'`)
	var later int
	err = sqlDB(t, u.String()).QueryRow(`SELECT termgw.later() + (SELECT count(*) FROM termgw.later)`).Scan(&later)
	if err != nil {
		t.Errorf("what a later migration makes: %v", err)
	}
}

// A schema that lacks a migration is told as such, whatever of it is not needed at this moment.
func TestSchemaThatLacksAMigration(t *testing.T) {
	t.Parallel()
	dsn := database(t, textWorkspaces)
	execSQL(t, dsn, `DELETE FROM termgw.schema_migrations WHERE version = '0003_empty_names'`)
	p := open(t, PostgresConfig{URL: dsn})
	if err := p.Ping(t.Context()); !errors.Is(err, ErrSchema) || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "0003_empty_names") {
		t.Errorf("got %v", err)
	}
	execSQL(t, dsn, `INSERT INTO termgw.schema_migrations (version) VALUES ('0003_empty_names'), ('9999_of_a_newer_program')`)
	if err := p.Ping(t.Context()); err != nil {
		t.Errorf("with it: %v", err)
	}
}
