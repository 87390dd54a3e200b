package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/gomodule/redigo/redis"
)

// An entry is an element of a list in Redis; each inbox is a list.
type entry struct {
	message
	Expires int64 `json:"expires"` // nanoseconds since 1970
}

type lists struct{ pool *redis.Pool }

func open(address string) (store, error) {
	pool := &redis.Pool{
		MaxIdle:   connections,
		MaxActive: connections,
		Wait:      true,
		DialContext: func(ctx context.Context) (redis.Conn, error) {
			return redis.DialContext(ctx, "unix", address)
		},
	}
	return lists{pool}, nil
}

func (l lists) add(
	ctx context.Context, id [16]byte, username, text string, expires time.Time,
) error {
	value, err := json.Marshal(entry{message{text, hex.EncodeToString(id[:])}, expires.UnixNano()})
	if err != nil {
		return err
	}
	conn, err := l.pool.GetContext(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Do("RPUSH", username, value)
	return err
}

func (l lists) take(ctx context.Context, username string) ([]message, error) {
	conn, err := l.pool.GetContext(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// Send only fails with the connection, and then EXEC fails, too.
	conn.Send("MULTI")
	conn.Send("LRANGE", username, 0, -1)
	conn.Send("DEL", username)
	replies, err := redis.Values(conn.Do("EXEC"))
	if err != nil {
		return nil, err
	}
	values, err := redis.ByteSlices(replies[0], nil)
	if err != nil {
		return nil, err
	}
	taken, now := []message{}, time.Now().UnixNano()
	for _, value := range values {
		var found entry
		if err := json.Unmarshal(value, &found); err != nil {
			return nil, err
		}
		if found.Expires > now {
			taken = append(taken, found.message)
		}
	}
	return taken, nil
}
