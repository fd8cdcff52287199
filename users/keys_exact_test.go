package users

import (
	"encoding/json"
	"testing"
)

// Keys are judged by what clients will read of them, whose names differ in case from nothing else's.
//
// spec: c2s#device-keys
func TestKeysAreReadAsClientsReadThem(t *testing.T) {
	const rest = `"algorithms":["a"],"keys":{"ed25519:D":"QUJD"},"signatures":{}`
	for text, good := range map[string]bool{
		`{"user_id":"@a:a","device_id":"D",` + rest + `}`:                             true,
		`{"user_id":"@a:a","device_id":"D",` + rest + `,"USER_ID":"@b:a"}`:            true,
		`{"user_id":"@b:a","device_id":"D",` + rest + `,"USER_ID":"@a:a"}`:            false,
		`{"user_id":"@a:a","device_id":"D",` + rest + `,"Keys":{"ed25519:X":"QUJD"}}`: true,
		`{"User_id":"@a:a","device_id":"D",` + rest + `}`:                             false,
	} {
		if _, err := checkDeviceKeys("@a:a", "D", json.RawMessage(text)); (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		}
	}
	key, err := parseCrossSigning("@a:a", master, json.RawMessage(`{"user_id":"@a:a","usage":["master"],"keys":{"ed25519:x":"x"},"KEYS":{"ed25519:y":"y"}}`))
	if err != nil || key.Public != "x" {
		t.Errorf("%+v %v", key, err)
	}
}
