package peer

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"chancery"
)

// ErrBackedOff is the cause when a destination was not asked because it failed lately.
var ErrBackedOff = errors.New("the destination is backed off")

// ErrAnswerTooLarge is the cause when an answer went over its limit.
var ErrAnswerTooLarge = errors.New("the answer is too large")

// Error is a request to another server that did not succeed. In its chain stands a
// *chancery.Error that a client may see; what a peer says about its own tokens and users is not
// passed on as if it were ours.
type Error struct {
	Destination string
	Status      int           // of the answer; 0 where there was none
	Code        chancery.Code // as the peer sent it; empty where there was none
	Message     string        // as the peer sent it
	RetryAt     time.Time     // when the destination is backed off
	visible     *chancery.Error
}

func (e *Error) Error() string {
	switch {
	case e.Status != 0:
		return fmt.Sprintf("%s answered %d %s: %.200q", e.Destination, e.Status, e.Code, e.Message)
	default:
		return fmt.Sprintf("ask %s: %v", e.Destination, e.visible.Unwrap())
	}
}

func (e *Error) Unwrap() error {
	if e.visible == nil {
		return nil // and not a nil *chancery.Error, which errors.Is would ask for its cause
	}
	return e.visible
}

// ours are the codes that would tell our client something about our own server.
var ours = map[chancery.Code]bool{
	chancery.CodeUnknownToken: true, chancery.CodeMissingToken: true, chancery.CodeUnauthorized: true,
	chancery.CodeUserLocked: true, chancery.CodeUserSuspended: true, chancery.CodeUserDeactivated: true,
	chancery.CodeUnrecognized: true, chancery.CodeNotJSON: true, "": true,
}

// answered makes the error for an answer that is no success.
func answered(destination string, status int, code chancery.Code, message string, extra map[string]any) *Error {
	visible := chancery.Errorf(http.StatusBadGateway, chancery.CodeUnknown, "%s answered with an error", destination)
	if status >= 400 && status < 500 && status != http.StatusUnauthorized && !ours[code] && len(code) < 100 {
		visible = chancery.Errorf(status, code, "%s: %.500s", destination, message)
		for key, value := range extra {
			visible = visible.With(key, value)
		}
	}
	return &Error{Destination: destination, Status: status, Code: code, Message: message,
		visible: visible.Because(fmt.Errorf("status %d %s: %.200q", status, code, message))}
}

// unreachable makes the error for a request without a usable answer.
func unreachable(destination string, cause error) *Error {
	return &Error{Destination: destination,
		visible: chancery.Errorf(http.StatusBadGateway, chancery.CodeUnknown, "cannot reach %s", destination).Because(cause)}
}

func backedOff(destination string, until time.Time) *Error {
	e := unreachable(destination, ErrBackedOff)
	e.RetryAt = until
	return e
}

// StatusOf gives the status that a peer answered with, or 0.
func StatusOf(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}
