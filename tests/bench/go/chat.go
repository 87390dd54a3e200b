// Package main is the chat inbox as a small Go service, for scripts/bench to compare with.
//
// chat.go has HTTP and JSON; the other files have one database each, and each makes a program of
// its own together with this one. usage: PROGRAM PORT ADDRESS-OF-THE-DATABASE
//
// The programs validate next to nothing, as tests/bench/apps.py. They answer a post once it is
// durable, and give each message to one reader.
package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// connections is the size of a pool of connections to the database.
const connections = 64

// A post is a message that is sent; a message is what its reader gets.
type post struct {
	Username string  `json:"username"`
	Text     string  `json:"text"`
	Timeout  float64 `json:"timeout"`
}

type message struct {
	Text string `json:"text"`
	ID   string `json:"id"`
}

// A store has the messages. Each database's file has a function open that returns one.
type store interface {
	// add stores a message durably.
	add(ctx context.Context, id [16]byte, username, text string, expires time.Time) error
	// take removes the unexpired messages of an inbox and returns them in the order of their ids.
	take(ctx context.Context, username string) ([]message, error)
}

func main() {
	messages, err := open(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/chat", func(w http.ResponseWriter, r *http.Request) {
		var sent post
		if err := json.NewDecoder(r.Body).Decode(&sent); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		id := newID()
		expires := time.Now().Add(time.Duration(sent.Timeout * float64(time.Second)))
		if err := messages.add(r.Context(), id, sent.Username, sent.Text, expires); err != nil {
			fail(w, err)
			return
		}
		answer(w, http.StatusCreated, map[string]string{"id": hex.EncodeToString(id[:])})
	})
	http.HandleFunc("/chat/", func(w http.ResponseWriter, r *http.Request) {
		taken, err := messages.take(r.Context(), strings.TrimPrefix(r.URL.Path, "/chat/"))
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, http.StatusOK, taken)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")
	log.Fatal(http.Serve(listener, nil))
}

// newID returns an id that sorts by time: nanoseconds, then random bytes.
func newID() (id [16]byte) {
	binary.BigEndian.PutUint64(id[:8], uint64(time.Now().UnixNano()))
	if _, err := rand.Read(id[8:]); err != nil {
		log.Fatal(err)
	}
	return id
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		log.Print(err)
	}
}

func fail(w http.ResponseWriter, err error) {
	log.Print(err)
	http.Error(w, "the database failed", http.StatusInternalServerError)
}
