package federation

import (
	"fmt"

	"go.uber.org/zap"
)

// guarded does work on what other servers have sent, in a goroutine of its own: there nobody above it would stop a
// panic, and no server may be able to end the process.
func guarded(log *zap.Logger, what string, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic", zap.String("while", what), zap.Any("panic", p), zap.Stack("stack"))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return do()
}
