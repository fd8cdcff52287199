package peer

import (
	jsonx "github.com/go-json-experiment/json"
	jsonv1 "github.com/go-json-experiment/json/v1"
)

// As encoding/json, but names match in their exact case: of {"keys": 1, "KEYS": 2} others read the first.
var decodeOptions = jsonx.JoinOptions(jsonv1.DefaultOptionsV1(), jsonx.MatchCaseInsensitiveNames(false))

// Decode reads what another server says, as the one that signed it and the clients that get it do: of members with one
// name the last counts, as in CanonicalJSON.
func Decode(text []byte, into any) error { return jsonx.Unmarshal(text, into, decodeOptions) }
