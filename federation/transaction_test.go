package federation

import (
	"testing"

	"chancery"

	"go.uber.org/zap"
)

// A panic while a transaction is taken, here for want of a database, fails that transaction and no more.
func TestPanicFailsTheTransaction(t *testing.T) {
	s := &Server{Log: zap.NewNop()}
	answer, err := s.sendTransaction(t.Context(), &transactionIn{Origin: "evil.example", TxnID: "1"})
	if answer != nil || chancery.As(err).Status != 500 {
		t.Errorf("got %v and %v", answer, err)
	}
	if len(s.inbound.origins) > 0 {
		t.Error("the server's turn is still taken")
	}
}
