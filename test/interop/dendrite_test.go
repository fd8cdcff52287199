//go:build goolm

package interop

import (
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"chancery/test/homeserver"
)

const dendriteConfig = `
version: 2
global:
  server_name: "127.0.0.1:%[1]s"
  private_key: "%[2]s/key.pem"
  presence: {enable_inbound: true, enable_outbound: true}
  jetstream: {storage_path: "%[2]s/jetstream"}
  report_stats: {enabled: false}
  cache: {max_size_estimated: 64mb, max_age: 1h}
client_api:
  registration_disabled: false
  guests_disabled: true
  registration_shared_secret: interop
  rate_limiting: {enabled: false}
room_server:
  database: {connection_string: "%[3]sroomserver%[4]s", max_open_conns: 10, max_idle_conns: 10}
key_server:
  database: {connection_string: "%[3]skeys%[4]s", max_open_conns: 10, max_idle_conns: 10}
relay_api:
  database: {connection_string: "%[3]srelay%[4]s", max_open_conns: 10, max_idle_conns: 10}
mscs:
  mscs: []
  database: {connection_string: "%[3]smscs%[4]s", max_open_conns: 10, max_idle_conns: 10}
federation_api:
  database: {connection_string: "%[3]sfederation%[4]s", max_open_conns: 10, max_idle_conns: 10}
  send_max_retries: 16
  deny_networks: []
  allow_networks: ["0.0.0.0/0"]
media_api:
  base_path: "%[2]s/media"
  dynamic_thumbnails: true
  database: {connection_string: "%[3]smedia%[4]s", max_open_conns: 10, max_idle_conns: 10}
sync_api:
  search: {enabled: false}
  database: {connection_string: "%[3]ssync%[4]s", max_open_conns: 10, max_idle_conns: 10}
user_api:
  bcrypt_cost: 4
  account_database: {connection_string: "%[3]saccounts%[4]s", max_open_conns: 10, max_idle_conns: 10}
logging: [{type: std, level: info}]
`

func dendrite(t testing.TB, ca *homeserver.CA, binary, database string) *server {
	t.Helper()
	s := foreign(t, "dendrite", func(dir, federation, client string) func() *exec.Cmd {
		cert, key := ca.Issue(t)
		seed := make([]byte, 32)
		rand.Read(seed)
		write(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "MATRIX PRIVATE KEY",
			Headers: map[string]string{"Key-ID": "ed25519:interop"}, Bytes: seed})))
		before, after := "file:"+dir+"/", ".db"
		if database != "" {
			// One for all, and no waiting for the disk: it writes many times for each event.
			before, after = database+"&synchronous_commit=off&application_name=", ""
		}
		config := write(t, filepath.Join(dir, "dendrite.yaml"), fmt.Sprintf(dendriteConfig, federation, dir, before, after))
		return func() *exec.Cmd {
			cmd := exec.Command(binary, "-really-enable-open-registration", "-config", config, "-http-bind-address", "127.0.0.1:"+client,
				"-https-bind-address", "127.0.0.1:"+federation, "-tls-cert", cert, "-tls-key", key)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+ca.File)
			return cmd
		}
	})
	s.lacks = map[string]string{
		"partial joins":               "it neither leaves members out of the answer to a join nor asks for that",
		"bundled edits":               "it bundles no replacement with an event",
		"redactions since version 11": "it looks for what is redacted at the top of the event only (rooms/v11#event-format)",
		"invites to version 12":       "its invites come without the create event, and are refused (s2s/sendInviteV2)",
		"names of invites":            "where it is in the room, it stores an invite again when that comes among the room's events, without the room's state",
		"ends of invites":             "an invite that it has stored twice cannot end: UNIQUE constraint failed: syncapi_invite_events.id",
		"queues of more than 128":     "when its memory of 128 events for a server is full, it forgets the others, until half a minute after the last of them it has another event to send, and then sends them in no order",
		"updates of signatures":       "it sends no m.device_list_update when one signs a device of one's own, but the signing keys, which are as they were",
		"knock":                       "it has no endpoint of knocking, for clients nor for servers",
		"event at a time":             "it has no endpoint that finds an event by its time",
		"space/our room":              "it lists a room twice to whom it shows a space",
		"notary/their room":           "it serves /key/v2/query by GET only with the ID of a key, as it was once",
	}
	return s
}
