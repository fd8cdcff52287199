package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"chancery"
	"chancery/roomserver"
	"chancery/storage"

	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"
	"maunium.net/go/mautrix/id"
)

// What a transaction may hold.
//
// spec: s2s#transactions
const (
	maxPDUs = 50
	maxEDUs = 100
)

const (
	transactionTime = 5 * time.Minute // to take one, however long its sender waits for it
	maxWaiting      = 16              // transactions of one server at a time; more are told to wait

	// They are kept when the request is given up, and so no longer counted among its bytes.
	maxWaitingBytes    = 32 << 20  // of one server's
	maxAllWaitingBytes = 256 << 20 // of all
	maxTxnID           = 255
)

type transactionIn struct {
	Origin string          `origin:""`
	TxnID  string          `path:"txnId"`
	Body   transactionBody `body:"json,pieces"`
}

// transactionBody is what its sender signed, as a whole. Nothing is known yet of what the pieces are: each is read by itself,
// strictly, so that what two parsers would read differently is read by nobody here.
type transactionBody struct {
	PDUs pieces `json:"pdus"`
	EDUs pieces `json:"edus"`
}

// pieces are those of a list, of a longer one than any may be the first: what is refused takes no memory.
type pieces []json.RawMessage

// UnmarshalJSONFrom reads a list, or null.
func (p *pieces) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	*p = nil
	if begin, err := d.ReadToken(); err != nil || begin.Kind() == 'n' {
		return err
	} else if begin.Kind() != '[' {
		return errors.New("not a list")
	}
	for d.PeekKind() != ']' {
		if len(*p) > max(maxPDUs, maxEDUs) {
			if err := d.SkipValue(); err != nil {
				return err
			}
			continue
		}
		piece, err := d.ReadValue()
		if err != nil {
			return err
		}
		*p = append(*p, json.RawMessage(piece.Clone()))
	}
	_, err := d.ReadToken()
	return err
}

func (p pieces) size() (bytes int) {
	for _, piece := range p {
		bytes += len(piece)
	}
	return bytes
}

type pduResult struct {
	Error string `json:"error,omitempty"`
}

type transactionOut struct {
	PDUs map[id.EventID]pduResult `json:"pdus"`
}

// inbound keeps the transactions that are being taken.
type inbound struct {
	flight singleflight.Group

	mu      sync.Mutex // guards the rest; a leaf
	origins map[string]*originTurn
	bytes   int                // of the transactions that wait or are being taken
	failed  map[string]failing // by origin
}

// maxAgain is how often a transaction is left to be brought again because our storage failed. What fails for
// ever must not stop the server behind it for ever.
const maxAgain = 5

// again counts the failures of the transaction that a server brings, and says whether it should come again.
func (in *inbound) again(origin, txnID string) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.failed == nil || len(in.failed) > 10_000 {
		in.failed = map[string]failing{}
	}
	f := in.failed[origin]
	if f.txnID != txnID {
		f = failing{txnID: txnID}
	}
	f.times++
	in.failed[origin] = f
	if f.times > maxAgain {
		delete(in.failed, origin)
		return false
	}
	return true
}

// failing is the last transaction of a server that storage failed to take.
type failing struct {
	txnID string
	times int
}

// originTurn lets the transactions of one server in one after the other, in the order in which they came.
type originTurn struct {
	waiting int
	bytes   int
	turn    chan struct{}
}

func (in *inbound) enter(origin string, bytes int) (*originTurn, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.origins == nil {
		in.origins = map[string]*originTurn{}
	}
	o := in.origins[origin]
	if o == nil {
		o = &originTurn{turn: make(chan struct{}, 1)}
	}
	if o.waiting >= maxWaiting || o.bytes+bytes > maxWaitingBytes || in.bytes+bytes > maxAllWaitingBytes {
		return nil, false
	}
	in.origins[origin] = o
	o.waiting++
	o.bytes += bytes
	in.bytes += bytes
	return o, true
}

func (in *inbound) leave(origin string, o *originTurn, bytes int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	o.bytes -= bytes
	in.bytes -= bytes
	if o.waiting--; o.waiting == 0 {
		delete(in.origins, origin)
	}
}

// sendTransaction takes what another server has to tell. A transaction that comes again while it is being
// taken waits for the same end, and later it gets the same answer.
//
// spec: s2s/sendTransaction
func (s *Server) sendTransaction(ctx context.Context, in *transactionIn) (*json.RawMessage, error) {
	switch {
	case len(in.TxnID) > maxTxnID:
		return nil, chancery.InvalidParam("the transaction ID is longer than %d bytes", maxTxnID)
	case len(in.Body.PDUs) > maxPDUs:
		return nil, chancery.BadJSON("a transaction holds at most %d PDUs", maxPDUs)
	case len(in.Body.EDUs) > maxEDUs:
		return nil, chancery.BadJSON("a transaction holds at most %d EDUs", maxEDUs)
	}
	done := s.inbound.flight.DoChan(in.Origin+"\x00"+in.TxnID, func() (any, error) {
		// The sender may give up and come again: what is begun is brought to an end meanwhile.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), transactionTime)
		defer cancel()
		return s.takeGuarded(ctx, in)
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case result := <-done:
		if result.Err != nil {
			return nil, result.Err
		}
		answer := result.Val.(json.RawMessage)
		return &answer, nil
	}
}

// takeGuarded turns a panic into a failed transaction: its goroutine has nobody above it who would, and a server must
// not be able to end the process.
func (s *Server) takeGuarded(ctx context.Context, in *transactionIn) (answer json.RawMessage, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("panic while taking a transaction", zap.String("origin", in.Origin), zap.Any("panic", p), zap.Stack("stack"))
			answer, err = nil, chancery.Internal(fmt.Errorf("panic: %v", p))
		}
	}()
	return s.takeOnce(ctx, in)
}

func (s *Server) takeOnce(ctx context.Context, in *transactionIn) (answer json.RawMessage, err error) {
	bytes := in.Body.PDUs.size() + in.Body.EDUs.size()
	o, ok := s.inbound.enter(in.Origin, bytes)
	if !ok {
		return nil, chancery.LimitExceeded(5 * time.Second)
	}
	defer s.inbound.leave(in.Origin, o, bytes)
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-o.turn }()
	known := false
	if err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		answer, known, err = tx.ReceivedTransaction(in.Origin, in.TxnID)
		return err
	}); err != nil || known {
		return answer, err
	}
	out := transactionOut{PDUs: map[id.EventID]pduResult{}}
	// EDUs first: the keys that the messages need are among them, and messages may have to wait for others.
	if err := s.receiveEDUs(ctx, in.Origin, in.Body.EDUs); err != nil {
		return nil, err
	}
	results := s.Rooms.Receive(ctx, in.Origin, in.Body.PDUs)
	for _, err := range results {
		if errors.Is(err, roomserver.ErrStorage) && s.inbound.again(in.Origin, in.TxnID) {
			return nil, chancery.Internal(err) // it is brought again: an answer would be the end of these events
		}
	}
	delete(results, "")
	for eventID, err := range results {
		out.PDUs[eventID] = pduResult{Error: reason(err)}
		if err != nil {
			s.Log.Debug("event not taken", zap.String("origin", in.Origin), zap.String("event", string(eventID)), zap.Error(err))
		}
	}
	if answer, err = json.Marshal(out); err != nil {
		return nil, err
	}
	return answer, s.DB.Write(ctx, nil, func(tx storage.Tx) error {
		tx.InsertReceivedTransaction(in.Origin, in.TxnID, answer, time.Now().UnixMilli())
		return nil
	})
}

// reason says what of an error another server may see.
func reason(err error) string {
	if err == nil {
		return ""
	}
	return chancery.As(err).Message
}
