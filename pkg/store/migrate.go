package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/lib/pq"
)

//go:embed migrations/*.sql
var migrations embed.FS

// recordSQL begins the record of what is applied.
const recordSQL = `CREATE TABLE termgw.schema_migrations (
	version    text        PRIMARY KEY,
	applied_at timestamptz NOT NULL DEFAULT now()
)`

const lockSQL = `LOCK TABLE termgw.schema_migrations IN SHARE ROW EXCLUSIVE MODE`

// Migrate brings the schema termgw up to date and returns the names of the migrations that it applied, in order. Several
// may run at once: one works, the others call waiting (unless it is nil), wait, and find nothing to do. Each migration is a transaction of its own, which
// locks the record of what is applied: a lock that only roles with rights to the record can hold. Nothing outside the schema
// is touched, which is made only if it is not there: a role that may not create one can be given it.
func Migrate(ctx context.Context, url string, waiting func()) (applied []string, err error) {
	return PostgresConfig{URL: url}.Migrate(ctx, waiting)
}

// Migrate does what the function Migrate does, in the database of URL, URLFile and Token.
func (c PostgresConfig) Migrate(ctx context.Context, waiting func()) (applied []string, err error) {
	_, cfg, err := c.source().read(ctx)
	if err != nil {
		return nil, err
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	connector, err := pq.NewConnectorConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("migrating: %w", err)
	}
	db := sql.OpenDB(connector)
	defer func() { err = errors.Join(err, db.Close()) }()

	conn, err := db.Conn(ctx) // of a transaction pooler, too: what is locked, is locked for one transaction
	if err != nil {
		return nil, fmt.Errorf("migrating: connecting: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	done, err := appliedMigrations(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("migrating: %w", err)
	}
	for _, file := range migrationFiles() {
		name := strings.TrimSuffix(path.Base(file), ".sql")
		if slices.Contains(done, name) {
			continue
		}
		did, err := applyMigration(ctx, conn, file, name, waiting)
		if err != nil {
			return applied, fmt.Errorf("migrating: %s: %w", name, err)
		}
		if did {
			applied = append(applied, name)
		}
	}
	return applied, nil
}

// migrationFiles returns the files of all migrations, in order.
func migrationFiles() []string {
	files, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		panic(err) // a malformed pattern
	}
	return files
}

// SchemaVersion returns the name of the last migration that this program knows: the version of the schema termgw after
// Migrate.
func SchemaVersion() string {
	files := migrationFiles()
	return strings.TrimSuffix(path.Base(files[len(files)-1]), ".sql")
}

const missingSQL = `SELECT ARRAY(SELECT v FROM unnest($1::text[]) v WHERE v NOT IN (SELECT version FROM termgw.schema_migrations) ORDER BY v)`

// checkSchema asks which of this program's migrations the database lacks, until it lacks none.
func (p *Postgres) checkSchema(ctx context.Context, op string) error {
	if p.migrated.Load() {
		return nil
	}
	var names, missing []string
	for _, file := range migrationFiles() {
		names = append(names, strings.TrimSuffix(path.Base(file), ".sql"))
	}
	if err := p.one(ctx, missingSQL, []any{pq.Array(names)}, pq.Array(&missing)); err != nil {
		return unavailable(op, err)
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s: %w: %w: it lacks %s", op, ErrUnavailable, ErrSchema, strings.Join(missing, ", "))
	}
	p.migrated.Store(true)
	return nil
}

// appliedMigrations returns what the record holds, and begins one where there is none. CREATE SCHEMA IF NOT EXISTS would
// ask for the right to create even when there is nothing to do.
func appliedMigrations(ctx context.Context, conn *sql.Conn) ([]string, error) {
	var schema, table bool
	err := conn.QueryRowContext(ctx,
		`SELECT to_regnamespace('termgw') IS NOT NULL, to_regclass('termgw.schema_migrations') IS NOT NULL`).Scan(&schema, &table)
	if err != nil {
		return nil, fmt.Errorf("looking for the schema: %w", err)
	}
	if !schema {
		if _, err := conn.ExecContext(ctx, `CREATE SCHEMA termgw`); err != nil && !existsNow(err) {
			return nil, fmt.Errorf("creating the schema termgw: %w", err)
		}
	}
	if !table {
		if _, err := conn.ExecContext(ctx, recordSQL); err != nil && !existsNow(err) {
			return nil, fmt.Errorf("creating termgw.schema_migrations: %w", err)
		}
	}
	var done []string
	err = conn.QueryRowContext(ctx, `SELECT COALESCE(array_agg(version), '{}') FROM termgw.schema_migrations`).Scan(pq.Array(&done))
	if err != nil {
		return nil, fmt.Errorf("reading termgw.schema_migrations: %w", err)
	}
	return done, nil
}

// existsNow reports whether another migration has made the same meanwhile.
func existsNow(err error) bool {
	pe, ok := errors.AsType[*pq.Error](err)
	if !ok {
		return false
	}
	switch pe.Code {
	case "42P06", "42P07", "42710", "23505": // duplicate schema, table, the table's type, entry of a catalog
		return true
	}
	return false
}

// applyMigration reports whether it applied the migration; another may have meanwhile.
func applyMigration(ctx context.Context, conn *sql.Conn, file, name string, waiting func()) (did bool, err error) {
	body, err := migrations.ReadFile(file)
	if err != nil {
		return false, err
	}
	tx, err := beginLocked(ctx, conn, lockSQL+" NOWAIT")
	if isState(err, "55P03") { // lock not available
		if waiting != nil {
			waiting()
		}
		tx, err = beginLocked(ctx, conn, lockSQL)
	}
	if err != nil {
		return false, fmt.Errorf("waiting for another migration: %w", err)
	}
	defer func() {
		if err != nil || !did {
			_ = tx.Rollback() // the first error is the one to tell
		}
	}()
	var done bool
	err = tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM termgw.schema_migrations WHERE version = $1)`, name).Scan(&done)
	if err != nil || done {
		return false, err
	}
	if _, err := tx.ExecContext(ctx, string(body)); err != nil {
		return false, err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO termgw.schema_migrations (version) VALUES ($1)`, name); err != nil {
		return false, err
	}
	return true, tx.Commit()
}

// beginLocked begins a transaction by a lock, which ends with it, whichever connection a pooler may give to the next.
func beginLocked(ctx context.Context, conn *sql.Conn, lock string) (*sql.Tx, error) {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	if _, err := tx.ExecContext(ctx, lock); err != nil {
		_ = tx.Rollback() // the first error is the one to tell
		return nil, err
	}
	return tx, nil
}
