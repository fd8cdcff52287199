package chancery

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Code is a Matrix error code as it stands in the "errcode" field.
//
// spec: c2s#standard-error-response
type Code string

const (
	CodeForbidden               Code = "M_FORBIDDEN"
	CodeUnknownToken            Code = "M_UNKNOWN_TOKEN"
	CodeMissingToken            Code = "M_MISSING_TOKEN"
	CodeUserLocked              Code = "M_USER_LOCKED"
	CodeUserSuspended           Code = "M_USER_SUSPENDED"
	CodeUserDeactivated         Code = "M_USER_DEACTIVATED"
	CodeBadJSON                 Code = "M_BAD_JSON"
	CodeNotJSON                 Code = "M_NOT_JSON"
	CodeNotFound                Code = "M_NOT_FOUND"
	CodeLimitExceeded           Code = "M_LIMIT_EXCEEDED"
	CodeUnrecognized            Code = "M_UNRECOGNIZED"
	CodeUnknown                 Code = "M_UNKNOWN"
	CodeUnauthorized            Code = "M_UNAUTHORIZED"
	CodeUserInUse               Code = "M_USER_IN_USE"
	CodeInvalidUsername         Code = "M_INVALID_USERNAME"
	CodeRoomInUse               Code = "M_ROOM_IN_USE"
	CodeInvalidRoomState        Code = "M_INVALID_ROOM_STATE"
	CodeUnsupportedRoomVersion  Code = "M_UNSUPPORTED_ROOM_VERSION"
	CodeIncompatibleRoomVersion Code = "M_INCOMPATIBLE_ROOM_VERSION"
	CodeBadState                Code = "M_BAD_STATE"
	CodeGuestAccessForbidden    Code = "M_GUEST_ACCESS_FORBIDDEN"
	CodeMissingParam            Code = "M_MISSING_PARAM"
	CodeInvalidParam            Code = "M_INVALID_PARAM"
	CodeTooLarge                Code = "M_TOO_LARGE"
	CodeExclusive               Code = "M_EXCLUSIVE"
	CodeWeakPassword            Code = "M_WEAK_PASSWORD"
	CodeWrongRoomKeysVersion    Code = "M_WRONG_ROOM_KEYS_VERSION"
	CodeUnableToAuthoriseJoin   Code = "M_UNABLE_TO_AUTHORISE_JOIN"
	CodeUnableToGrantJoin       Code = "M_UNABLE_TO_GRANT_JOIN"
	CodeDuplicateAnnotation     Code = "M_DUPLICATE_ANNOTATION"
	CodeNotYetUploaded          Code = "M_NOT_YET_UPLOADED"
	CodeCannotOverwriteMedia    Code = "M_CANNOT_OVERWRITE_MEDIA"
	CodeCannotLeaveServerNotice Code = "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM"
	CodeInvalidSignature        Code = "M_INVALID_SIGNATURE"
	CodeBadAlias                Code = "M_BAD_ALIAS"
	CodeInviteBlocked           Code = "M_INVITE_BLOCKED"
	CodeThreepidNotFound        Code = "M_THREEPID_NOT_FOUND"
	CodeProfileTooLarge         Code = "M_PROFILE_TOO_LARGE"
	CodeKeyTooLarge             Code = "M_KEY_TOO_LARGE"
)

// Error is the one error type that crosses a component's border. Code, Status, Message
// and Extra are for the client; the cause is for the log and never leaves the server.
type Error struct {
	Code    Code
	Status  int
	Message string
	Extra   map[string]any // further members of the error object, such as "soft_logout"
	cause   error
}

func (e *Error) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.cause)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

func (e *Error) Unwrap() error { return e.cause }

// Because returns a copy that carries cause for the log.
func (e *Error) Because(cause error) *Error {
	c := *e
	c.cause = cause
	return &c
}

// With returns a copy with one more member in the error object.
func (e *Error) With(key string, value any) *Error {
	c := *e
	c.Extra = make(map[string]any, len(e.Extra)+1)
	for k, v := range e.Extra {
		c.Extra[k] = v
	}
	c.Extra[key] = value
	return &c
}

// Errorf makes an error with any code and status.
func Errorf(status int, code Code, format string, args ...any) *Error {
	return &Error{Code: code, Status: status, Message: fmt.Sprintf(format, args...)}
}

// Forbidden says that the caller may not do this (403 M_FORBIDDEN).
func Forbidden(format string, args ...any) *Error {
	return Errorf(http.StatusForbidden, CodeForbidden, format, args...)
}

// NotFound says that there is no such thing, or none that the caller may know of (404 M_NOT_FOUND).
func NotFound(format string, args ...any) *Error {
	return Errorf(http.StatusNotFound, CodeNotFound, format, args...)
}

// BadJSON says that the JSON was well-formed but not what the endpoint wants (400 M_BAD_JSON).
func BadJSON(format string, args ...any) *Error {
	return Errorf(http.StatusBadRequest, CodeBadJSON, format, args...)
}

// NotJSON says that the body was no JSON (400 M_NOT_JSON).
func NotJSON(format string, args ...any) *Error {
	return Errorf(http.StatusBadRequest, CodeNotJSON, format, args...)
}

// InvalidParam says that a parameter has a value it must not have (400 M_INVALID_PARAM).
func InvalidParam(format string, args ...any) *Error {
	return Errorf(http.StatusBadRequest, CodeInvalidParam, format, args...)
}

// MissingParam says that a required parameter is not there (400 M_MISSING_PARAM).
func MissingParam(format string, args ...any) *Error {
	return Errorf(http.StatusBadRequest, CodeMissingParam, format, args...)
}

// TooLarge says that the request or the event is too large (413 M_TOO_LARGE).
func TooLarge(format string, args ...any) *Error {
	return Errorf(http.StatusRequestEntityTooLarge, CodeTooLarge, format, args...)
}

// Unrecognized says that this endpoint does not exist here (404 M_UNRECOGNIZED).
func Unrecognized() *Error {
	return Errorf(http.StatusNotFound, CodeUnrecognized, "unrecognized request")
}

// MissingToken says that the request needs an access token and has none (401 M_MISSING_TOKEN).
func MissingToken() *Error {
	return Errorf(http.StatusUnauthorized, CodeMissingToken, "missing access token")
}

// UnknownToken says that the access token is not (or no longer) valid (401 M_UNKNOWN_TOKEN).
// With soft the client keeps its state and keys and signs in again.
//
// spec: c2s#soft-logout
func UnknownToken(soft bool) *Error {
	return Errorf(http.StatusUnauthorized, CodeUnknownToken, "unknown access token").With("soft_logout", soft)
}

// Unauthorized says that a signature or credential did not hold (401 M_UNAUTHORIZED).
func Unauthorized(format string, args ...any) *Error {
	return Errorf(http.StatusUnauthorized, CodeUnauthorized, format, args...)
}

// LimitExceeded says that the caller asks too often (429 M_LIMIT_EXCEEDED).
func LimitExceeded(retry time.Duration) *Error {
	return Errorf(http.StatusTooManyRequests, CodeLimitExceeded, "too many requests").
		With("retry_after_ms", max(retry.Milliseconds(), 1))
}

// Internal says nothing to the client; the cause goes to the log (500 M_UNKNOWN).
func Internal(cause error) *Error {
	return Errorf(http.StatusInternalServerError, CodeUnknown, "internal server error").Because(cause)
}

// As gives the Error in err's chain; any other error becomes Internal.
func As(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return Internal(err)
}

// IsCode says whether err carries the code.
func IsCode(err error, code Code) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}
