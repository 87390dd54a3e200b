package main

import (
	"context"
	"encoding/hex"
	"sort"
	"time"

	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

// schema has no primary key: no statement finds a row by its id, and an index more would only cost.
const schema = `
	CREATE TABLE IF NOT EXISTS messages
		(id uuid NOT NULL, username text NOT NULL, text text NOT NULL, expires_at timestamptz NOT NULL);
	CREATE INDEX IF NOT EXISTS messages_username ON messages (username);`

// statements are prepared on each connection, by name.
var statements = map[string]string{
	"add":  "INSERT INTO messages (id, username, text, expires_at) VALUES ($1, $2, $3, $4)",
	"take": "DELETE FROM messages WHERE username = $1 AND expires_at > now() RETURNING id, text",
}

type postgres struct{ pool *pgxpool.Pool }

func open(address string) (store, error) {
	ctx := context.Background()
	config, err := pgxpool.ParseConfig(address)
	if err != nil {
		return nil, err
	}
	setup, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return nil, err
	}
	if _, err := setup.Exec(ctx, schema); err != nil {
		return nil, err
	}
	if err := setup.Close(ctx); err != nil {
		return nil, err
	}
	config.MinConns, config.MaxConns = connections, connections
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		for name, statement := range statements {
			if _, err := conn.Prepare(ctx, name, statement); err != nil {
				return err
			}
		}
		return nil
	}
	pool, err := pgxpool.ConnectConfig(ctx, config)
	return postgres{pool}, err
}

func (p postgres) add(
	ctx context.Context, id [16]byte, username, text string, expires time.Time,
) error {
	_, err := p.pool.Exec(ctx, "add", id, username, text, expires)
	return err
}

func (p postgres) take(ctx context.Context, username string) ([]message, error) {
	rows, err := p.pool.Query(ctx, "take", username)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	taken := []message{}
	for rows.Next() {
		var id [16]byte
		var text string
		if err := rows.Scan(&id, &text); err != nil {
			return nil, err
		}
		taken = append(taken, message{text, hex.EncodeToString(id[:])})
	}
	sort.Slice(taken, func(i, j int) bool { return taken[i].ID < taken[j].ID })
	return taken, rows.Err()
}
