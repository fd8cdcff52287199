// Package config is what an operator may set: one documented struct for each component.
// The sample file is printed from these structs, so it cannot be out of date; reading
// reports every fault of a configuration at once, each with its line.
package config

import (
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"time"
)

// Config is a whole configuration. Default gives its defaults, Load reads one.
type Config struct {
	ServerName     string       `yaml:"server_name" default:"localhost" doc:"The name of this homeserver: the part after the colon in user IDs. It can never be changed."`
	DataDir        string       `yaml:"data_dir" default:"./data" path:"true" doc:"Everything the server keeps: keys, the embedded database, the log, media."`
	SigningKey     string       `yaml:"signing_key" path:"true" doc:"The key that signs events. Empty: signing.key in data_dir, made on first start.\nSynapse's format is read; old keys in it stay listed."`
	Client         Client       `yaml:"client" doc:"The client-server API, in plain HTTP. Put a proxy with TLS before it."`
	Federation     Federation   `yaml:"federation" doc:"The server-server API, for other homeservers."`
	Database       Database     `yaml:"database" doc:"Where rooms and accounts are kept."`
	NATS           NATS         `yaml:"nats" doc:"The log that tells the components what happened."`
	Registration   Registration `yaml:"registration" doc:"Who may make an account."`
	Passwords      Passwords    `yaml:"passwords" doc:"How passwords are kept."`
	RateLimits     RateLimits   `yaml:"rate_limits" doc:"Limits on how often one user or address may ask."`
	TrustedProxies []string     `yaml:"trusted_proxies" doc:"Addresses or networks of proxies whose X-Forwarded-For counts."`
	AppServices    []string     `yaml:"appservices" path:"true" doc:"Registrations of application services: files, directories or globs. Planned: not used yet."`
	Presence       Presence     `yaml:"presence" doc:"Who is online."`
	Media          Media        `yaml:"media" doc:"Files that users send."`
	Directory      Directory    `yaml:"directory" doc:"The directory of public rooms."`
	Identity       Identity     `yaml:"identity" doc:"Identity servers, which know whose an e-mail address is."`
	Email          Email        `yaml:"email" doc:"How the server sends mail. Planned: not used yet."`
	Rooms          Rooms        `yaml:"rooms" doc:"What new rooms are like."`
	WellKnown      WellKnown    `yaml:"well_known" doc:"What both listeners answer under /.well-known/matrix/."`
	Metrics        Metrics      `yaml:"metrics" doc:"Prometheus metrics at /metrics, on a listener of their own."`
	Log            Log          `yaml:"log" doc:"What the server writes about its work, to standard error."`
}

type Client struct {
	Listen    []string `yaml:"listen" default:"127.0.0.1:8008" kind:"listen" doc:"Addresses to listen on; exactly these are bound."`
	PublicURL string   `yaml:"public_url" kind:"url" doc:"Where clients reach this server from outside: https://matrix.example.org"`
}

type Federation struct {
	Listen                []string      `yaml:"listen" default:"127.0.0.1:8448" kind:"listen" doc:"Addresses to listen on; exactly these are bound."`
	TLS                   bool          `yaml:"tls" default:"true" doc:"false serves plain HTTP, for a proxy that has the certificate."`
	TLSCert               string        `yaml:"tls_cert" path:"true" kind:"file" doc:"Certificate chain and key in PEM. Empty: a self-signed one, made on first start."`
	TLSKey                string        `yaml:"tls_key" path:"true" kind:"file"`
	TrustedCA             []string      `yaml:"trusted_ca" path:"true" kind:"file" doc:"Further authorities for the certificates of peers, beside the system's and SSL_CERT_FILE."`
	AllowPrivateAddresses bool          `yaml:"allow_private_addresses" default:"false" doc:"true lets this server connect to private and loopback addresses. For test networks."`
	RetryMin              time.Duration `yaml:"retry_min" default:"30s" min:"100ms" doc:"How long after a failure a peer is tried again; each further failure doubles it."`
	Notaries              []string      `yaml:"notaries" kind:"server" doc:"Servers that are asked for the keys of those that do not answer, and believed: host or host:port. Empty: none."`
}

type Database struct {
	URL            string `yaml:"url" kind:"postgres" doc:"postgres://user:password@host/name. Empty: SQLite in data_dir."`
	MaxConnections int    `yaml:"max_connections" default:"20" min:"2" doc:"PostgreSQL connections of this process."`
}

type NATS struct {
	URL         string `yaml:"url" kind:"nats" doc:"nats://host:4222, several by comma. Empty: a NATS server inside this process."`
	Credentials string `yaml:"credentials" path:"true" kind:"file" doc:"A NATS credentials file."`
	Replicas    int    `yaml:"replicas" default:"1" min:"1" max:"5" doc:"Copies of the log in a NATS cluster."`
}

type Registration struct {
	Open         bool   `yaml:"open" default:"false" doc:"true lets anybody make an account."`
	Guests       bool   `yaml:"guests" default:"false" doc:"true lets guests in without an account."`
	SharedSecret string `yaml:"shared_secret" secret:"true" doc:"Lets tools that know it make accounts over /_synapse/admin/v1/register."`
}

type Passwords struct {
	Cost string `yaml:"cost" default:"normal" oneof:"normal low" doc:"normal or low. low is for tests only."`
}

type RateLimits struct {
	Enabled bool `yaml:"enabled" default:"true"`
}

type Presence struct {
	Enabled  bool `yaml:"enabled" default:"true"`
	Federate bool `yaml:"federate" default:"false" doc:"true tells presence to other servers and hears theirs."`
}

type Media struct {
	MaxUpload   Size `yaml:"max_upload" default:"100MiB" min:"1KiB" doc:"The largest file a user may upload."`
	URLPreviews bool `yaml:"url_previews" default:"false" doc:"true lets this server fetch pages that users link to, to show a preview. Planned: not used yet."`
}

type Directory struct {
	Public bool `yaml:"public" default:"false" doc:"true shows the room directory without login and over federation."`
}

type Identity struct {
	Servers []string `yaml:"servers" kind:"identity" doc:"Those that users may name to invite somebody by an address: host or host:port. * is any. Empty: none."`
}

type Email struct {
	SMTP string `yaml:"smtp" secret:"true" kind:"smtp" doc:"smtp://user:password@host:587 or smtps://host:465. Empty: no mail."`
	From string `yaml:"from" kind:"email" doc:"The sender of mail."`
}

type Rooms struct {
	DefaultVersion string `yaml:"default_version" default:"12" oneof:"1 2 3 4 5 6 7 8 9 10 11 12" doc:"The version of new rooms."`
}

type WellKnown struct {
	Client       bool    `yaml:"client" default:"true" doc:"Tell clients the address of this server (public_url)."`
	Server       string  `yaml:"server" kind:"server" doc:"Tell other servers where to find this one: host or host:port. Empty: not answered."`
	Support      Support `yaml:"support" doc:"Whom to ask for help."`
	PolicyServer bool    `yaml:"policy_server" default:"false" doc:"Be the policy server of rooms that name this one: recommend their events, but for those of\nbanned users and barred servers, and publish the key for it."`
}

// Support is what /.well-known/matrix/support answers, when anything of it is set.
//
// spec: c2s/getWellknownSupport
type Support struct {
	Contacts    []Contact `yaml:"contacts" json:"contacts,omitempty" doc:"A list of {role, email_address, matrix_id}; role is m.role.admin, m.role.moderator,\nm.role.dpo or m.role.security."`
	SupportPage string    `yaml:"support_page" json:"support_page,omitempty" kind:"url"`
}

type Contact struct {
	Role    string `yaml:"role" json:"role"`
	Email   string `yaml:"email_address" json:"email_address,omitempty" kind:"email"`
	Account string `yaml:"matrix_id" json:"matrix_id,omitempty"`
}

type Metrics struct {
	Listen string `yaml:"listen" kind:"listen" doc:"Address to listen on. Empty: off."`
}

type Log struct {
	Level  string `yaml:"level" default:"info" oneof:"debug info warn error" doc:"debug, info, warn or error."`
	Format string `yaml:"format" default:"console" oneof:"console json" doc:"console or json."`
}

// KeyFile is where the signing key is.
func (c *Config) KeyFile() string {
	if c.SigningKey != "" {
		return c.SigningKey
	}
	return filepath.Join(c.DataDir, "signing.key")
}

// ClientURL is the address under which clients reach this server: public_url, or the first
// listener when that has an address of its own. It is empty when nobody can tell.
func (c *Config) ClientURL() string {
	if c.Client.PublicURL != "" {
		return c.Client.PublicURL
	}
	for _, listen := range c.Client.Listen {
		host, port, err := net.SplitHostPort(listen)
		if err != nil || host == "" || port == "0" {
			continue
		}
		if a, err := netip.ParseAddr(host); err == nil && a.IsUnspecified() {
			continue
		}
		u := url.URL{Scheme: "http", Host: listen}
		return u.String()
	}
	return ""
}
