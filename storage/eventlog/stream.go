package eventlog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"chancery/storage/sql"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

const (
	streamPrefix  = "FACTS_"
	streamTimeout = 2 * time.Second
	// Messages of several processes lie in the stream in the order of their arrival, not of
	// their positions. A replay begins this many messages before the one it looks for.
	slack = 256
)

func subject(epoch int64) string { return fmt.Sprintf("facts.%d", epoch) }

func streamName(epoch int64) string { return fmt.Sprintf("%s%d", streamPrefix, epoch) }

// Newest gives the highest position in the stream of an epoch, 0 when there is none. A stream
// that is ahead of SQL at the start means that the database was rolled back: a new epoch must
// begin before anything is written.
func Newest(ctx context.Context, n *NATS, epoch int64) (int64, error) {
	js, err := jetstream.New(n.conn)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	stream, err := js.Stream(ctx, streamName(epoch))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for the log's stream: %w", err)
	}
	state := stream.CachedInfo().State
	var newest int64
	for seq := state.LastSeq; seq >= state.FirstSeq && seq > 0 && state.LastSeq-seq < 16; seq-- {
		msg, err := stream.GetMsg(ctx, seq)
		if err != nil {
			continue
		}
		if facts, err := decode(msg.Data); err == nil && len(facts) > 0 {
			newest = max(newest, facts[len(facts)-1].Pos)
		}
	}
	return newest, nil
}

// runStream makes the stream again after NATS came back, or somebody removed it.
func (l *Log) runStream(ctx context.Context) {
	connected := l.nats.conn.StatusChanged(nats.CONNECTED)
	defer l.nats.conn.RemoveStatusListener(connected)
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case _, open := <-connected:
			if !open {
				return
			}
		case <-tick.C:
		}
		l.mu.Lock()
		epoch := l.epoch
		l.mu.Unlock()
		l.keepStreamOnce(ctx, epoch)
	}
}

// keepStreamOnce sees to it that the epoch's stream exists, and those of other epochs go. It
// has no result: without a stream, readers that are far behind ask SQL.
func (l *Log) keepStreamOnce(ctx context.Context, epoch int64) {
	if !l.nats.conn.IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	config := jetstream.StreamConfig{
		Name:        streamName(epoch),
		Description: "facts that SQL has committed; safe to delete",
		Subjects:    []string{subject(epoch)},
		MaxAge:      l.StreamAge,
		MaxBytes:    l.StreamBytes,
		MaxMsgSize:  maxMessage + 1024, // and its headers
		Storage:     jetstream.FileStorage,
		Replicas:    l.nats.replicas,
		AllowDirect: true,
	}
	_, err := l.js.CreateOrUpdateStream(ctx, config)
	if err != nil && l.nats.embedded != nil {
		l.log.Warn("the log's stream is made anew", zap.Error(err))
		_ = l.js.DeleteStream(ctx, config.Name)
		_, err = l.js.CreateStream(ctx, config)
	}
	if err != nil {
		l.log.Warn("the log has no stream; readers that are far behind ask SQL", zap.Error(err))
		return
	}
	streams := l.js.ListStreams(ctx)
	for info := range streams.Info() {
		other := info.Config.Name
		if !strings.HasPrefix(other, streamPrefix) || other == config.Name {
			continue
		}
		// In a cluster a process of the old epoch may still be running: its stream goes when
		// its day is over.
		if l.nats.embedded != nil || info.State.Msgs == 0 {
			if err := l.js.DeleteStream(ctx, other); err == nil {
				l.log.Info("the stream of another epoch was removed", zap.String("stream", other))
			}
		}
	}
}

// replay gives the facts above from, up to about until, from the stream instead of SQL. It
// gives what it can prove complete: a position that the stream lacks is read from Source.
// covered is the first position for which the stream can be of use.
func (l *Log) replay(ctx context.Context, from, until int64, give func([]sql.Fact) error) (covered int64, err error) {
	if !l.nats.conn.IsConnected() {
		return 0, nats.ErrDisconnected
	}
	l.mu.Lock()
	epoch := l.epoch
	l.mu.Unlock()
	look, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	stream, err := l.js.Stream(look, streamName(epoch))
	if err != nil {
		return 0, err
	}
	state := stream.CachedInfo().State
	if state.Msgs == 0 {
		return until, nil
	}
	first, err := firstPos(look, stream, state.FirstSeq)
	if err != nil {
		return 0, err
	}
	if first > from+1 {
		return first - 1, nil
	}
	low, high := state.FirstSeq, state.LastSeq // low begins at or below from+1
	for low < high {
		mid := (low + high + 1) / 2
		pos, err := firstPos(look, stream, mid)
		if err != nil {
			return 0, err
		}
		if pos <= from+1 {
			low = mid
		} else {
			high = mid - 1
		}
	}
	start := state.FirstSeq
	if low > start+slack {
		start = low - slack
	}
	consumer, err := stream.OrderedConsumer(look, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:   start,
	})
	if err != nil {
		return 0, err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return 0, err
	}
	defer messages.Stop()
	o := &order{end: from}
	for o.end < until {
		msg, err := messages.Next(jetstream.NextMaxWait(streamTimeout))
		if err != nil {
			return 0, err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return 0, err
		}
		if facts, err := decode(msg.Data()); err == nil {
			if err := give(o.arrive(facts)); err != nil {
				return 0, err
			}
		}
		// Within the slack a gap may close by itself; then it is not in the stream.
		if o.gap() && (len(o.waiting) > l.Batch || meta.Sequence.Stream >= state.LastSeq) {
			rows, err := l.source.FactsAfter(ctx, o.end, l.Batch)
			if err != nil {
				return 0, err
			}
			if err := give(o.fill(rows)); err != nil {
				return 0, err
			}
		}
		if meta.Sequence.Stream >= state.LastSeq {
			break
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
	return until, nil
}

// firstPos is the lowest position in a message of the stream.
func firstPos(ctx context.Context, stream jetstream.Stream, seq uint64) (int64, error) {
	msg, err := stream.GetMsg(ctx, seq)
	if err != nil {
		return 0, err
	}
	facts, err := decode(msg.Data)
	if err != nil {
		return 0, err
	}
	if len(facts) == 0 {
		return 0, errors.New("a message in the log is empty")
	}
	return facts[0].Pos, nil
}
