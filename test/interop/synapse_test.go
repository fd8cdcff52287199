//go:build goolm

package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"chancery/test/homeserver"
	"chancery/test/notice"
)

// synapseVersion is the one that the stories were told with; another is tried by changing it here.
const synapseVersion = "1.163.2"

// python makes a virtual environment with Synapse in the user's cache, once for each version.
func python(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "chancery-interop", "synapse-"+synapseVersion)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	interpreter, done := filepath.Join(dir, "bin", "python"), filepath.Join(dir, "complete")
	if _, err := os.Stat(done); err == nil {
		return interpreter
	}
	notice.Print("install Synapse %s", synapseVersion)
	for _, step := range [][]string{
		{"python3", "-m", "venv", dir},
		{interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "matrix-synapse==" + synapseVersion},
	} {
		if out, err := exec.Command(step[0], step[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("install Synapse: %v: %v\n%s", step, err, out)
		}
	}
	write(t, done, "")
	return interpreter
}

const synapseConfig = `
server_name: "127.0.0.1:%[1]s"
public_baseurl: "http://127.0.0.1:%[2]s/"
pid_file: "%[3]s/pid"
listeners:
  - {port: %[2]s, bind_addresses: ["127.0.0.1"], type: http, resources: [{names: [client]}]}
  - {port: %[1]s, bind_addresses: ["127.0.0.1"], type: http, tls: true, resources: [{names: [federation]}]}
tls_certificate_path: "%[4]s"
tls_private_key_path: "%[5]s"
federation_custom_ca_list: ["%[6]s"]
ip_range_blacklist: []
trusted_key_servers: []
database: {name: sqlite3, args: {database: "%[3]s/synapse.db"}}
media_store_path: "%[3]s/media"
signing_key_path: "%[3]s/signing.key"
log_config: "%[3]s/log.yaml"
report_stats: false
enable_registration: true
enable_registration_without_verification: true
registration_shared_secret: "interop"
macaroon_secret_key: "interop"
form_secret: "interop"
bcrypt_rounds: 4
allow_public_rooms_over_federation: true
room_list_publication_rules: [{action: allow}]
presence: {enabled: true}
caches: {sync_response_cache_duration: 0}
federation: {destination_min_retry_interval: 1s, destination_retry_multiplier: 1, destination_max_retry_interval: 2s, max_long_retry_delay: 2s}
rc_message: &free {per_second: 100000, burst_count: 100000}
rc_registration: *free
rc_login: {address: *free, account: *free, failed_attempts: *free}
rc_admin_redaction: *free
rc_joins: {local: *free, remote: *free}
rc_joins_per_room: *free
rc_invites: {per_room: *free, per_user: *free, per_issuer: *free}
rc_room_creation: *free
rc_presence: {per_user: *free}
rc_media_create: *free
rc_reports: *free
rc_key_requests: *free
rc_federation: {window_size: 1000, sleep_limit: 100000, sleep_delay: 1, reject_limit: 100000, concurrent: 100}
remote_media_download_burst_count: 500M
remote_media_download_per_second: 500M
`

const synapseLogging = `
version: 1
disable_existing_loggers: false
formatters: {line: {format: '%(asctime)s %(name)s %(levelname)s %(request)s %(message)s'}}
handlers: {console: {class: logging.StreamHandler, formatter: line}}
loggers: {synapse.storage.SQL: {level: WARNING}}
root: {level: INFO, handlers: [console]}
`

func synapse(t testing.TB, ca *homeserver.CA, _ string) *server {
	t.Helper()
	interpreter := python(t)
	s := foreign(t, "synapse", func(dir, federation, client string) func() *exec.Cmd {
		cert, key := ca.Issue(t)
		write(t, filepath.Join(dir, "log.yaml"), synapseLogging)
		config := write(t, filepath.Join(dir, "homeserver.yaml"), fmt.Sprintf(synapseConfig, federation, client, dir, cert, key, ca.File))
		out, err := exec.Command(interpreter, "-m", "synapse.app.homeserver", "-c", config, "--generate-keys").CombinedOutput()
		if err != nil {
			t.Fatalf("configure Synapse: %v\n%s", err, out)
		}
		return func() *exec.Cmd {
			cmd := exec.Command(interpreter, "-m", "synapse.app.homeserver", "-c", config)
			cmd.Dir = dir
			return cmd
		}
	})
	s.whole, s.lacks = "State resync complete for", map[string]string{}
	return s
}
