package main

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"go.mongodb.org/mongo-driver/bson"
	"go.mongodb.org/mongo-driver/mongo"
	"go.mongodb.org/mongo-driver/mongo/options"
	"go.mongodb.org/mongo-driver/mongo/writeconcern"
)

type document struct {
	ID       string    `bson:"_id"`
	Username string    `bson:"username"`
	Text     string    `bson:"text"`
	Expires  time.Time `bson:"expires_at"`
	Unread   bool      `bson:"unread"`
}

type collection struct{ messages *mongo.Collection }

func open(address string) (store, error) {
	ctx := context.Background()
	durable := writeconcern.New(writeconcern.WMajority(), writeconcern.J(true))
	config := options.Client().ApplyURI(address).SetWriteConcern(durable).
		SetMinPoolSize(connections).SetMaxPoolSize(connections)
	client, err := mongo.Connect(ctx, config)
	if err != nil {
		return nil, err
	}
	messages := client.Database("bench_go").Collection("messages")
	_, err = messages.Indexes().CreateOne(ctx, mongo.IndexModel{
		Keys:    bson.D{{Key: "username", Value: 1}, {Key: "_id", Value: 1}},
		Options: options.Index().SetPartialFilterExpression(bson.D{{Key: "unread", Value: true}}),
	})
	return collection{messages}, err
}

func (c collection) add(
	ctx context.Context, id [16]byte, username, text string, expires time.Time,
) error {
	_, err := c.messages.InsertOne(
		ctx, document{hex.EncodeToString(id[:]), username, text, expires, true},
	)
	return err
}

// take runs one findOneAndUpdate for each message, until one finds nothing.
func (c collection) take(ctx context.Context, username string) ([]message, error) {
	filter := bson.D{
		{Key: "username", Value: username},
		{Key: "unread", Value: true},
		{Key: "expires_at", Value: bson.D{{Key: "$gte", Value: time.Now()}}},
	}
	update := bson.D{{Key: "$unset", Value: bson.D{{Key: "unread", Value: ""}}}}
	first := options.FindOneAndUpdate().SetSort(bson.D{{Key: "_id", Value: 1}})
	taken := []message{}
	for {
		var found document
		err := c.messages.FindOneAndUpdate(ctx, filter, update, first).Decode(&found)
		if errors.Is(err, mongo.ErrNoDocuments) {
			return taken, nil
		}
		if err != nil {
			return nil, err
		}
		taken = append(taken, message{found.Text, found.ID})
	}
}
