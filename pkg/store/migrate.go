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

// Migrate brings the schema termgw up to date and returns the names of the migrations that it applied, in order. Several
// may run at once: one works, the others wait and find nothing to do. Each migration is a transaction of its own. Nothing
// outside the schema is touched, which is made only if it is not there: a role that may not create one can be given it.
func Migrate(ctx context.Context, url string) (applied []string, err error) {
	_, cfg, err := parseURL(url)
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

	// An advisory lock belongs to a connection, so all of it happens on one. Closing it gives the lock back.
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("migrating: connecting: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, int64(lockMigrate)); err != nil {
		return nil, fmt.Errorf("migrating: waiting for another migration: %w", err)
	}
	done, err := appliedMigrations(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("migrating: %w", err)
	}
	files, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return nil, fmt.Errorf("migrating: %w", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(path.Base(file), ".sql")
		if slices.Contains(done, name) {
			continue
		}
		if err := applyMigration(ctx, conn, file, name); err != nil {
			return applied, fmt.Errorf("migrating: %s: %w", name, err)
		}
		applied = append(applied, name)
	}
	return applied, nil
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
		if _, err := conn.ExecContext(ctx, `CREATE SCHEMA termgw`); err != nil {
			return nil, fmt.Errorf("creating the schema termgw: %w", err)
		}
	}
	if !table {
		_, err := conn.ExecContext(ctx, `CREATE TABLE termgw.schema_migrations (
			version    text        PRIMARY KEY,
			applied_at timestamptz NOT NULL DEFAULT now()
		)`)
		if err != nil {
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

func applyMigration(ctx context.Context, conn *sql.Conn, file, name string) (err error) {
	body, err := migrations.ReadFile(file)
	if err != nil {
		return err
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback() // the first error is the one to tell
		}
	}()
	if _, err := tx.ExecContext(ctx, string(body)); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO termgw.schema_migrations (version) VALUES ($1)`, name); err != nil {
		return err
	}
	return tx.Commit()
}
