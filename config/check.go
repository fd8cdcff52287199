package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// check looks at one leaf: its bounds, its words and its kind.
func (l *loader) check(k key) {
	if l.bad[k.path] {
		return
	}
	where := l.where[k.path].text
	if err := checkBounds(k); err != nil {
		l.fault(k.path, where, "%s: %s", k.path, err)
		return
	}
	if words := k.tag.Get("oneof"); words != "" {
		if !slices.Contains(strings.Fields(words), k.value.String()) {
			l.fault(k.path, where, "%s: %q must be one of %s", k.path, k.value.String(), strings.Join(strings.Fields(words), ", "))
		}
		return
	}
	test := kinds[k.tag.Get("kind")]
	if k.path == "server_name" {
		test = checkServerName
	}
	if k.path == "trusted_proxies" {
		test = checkNetwork
	}
	switch {
	case k.value.Kind() == reflect.Slice && k.value.Type().Elem().Kind() == reflect.Struct:
		for i := range k.value.Len() {
			walk(k.value.Index(i), fmt.Sprintf("%s[%d]", k.path, i), func(k key) {
				if l.where[k.path].text == "" {
					l.where[k.path] = origin{text: where}
				}
				l.check(k)
			})
		}
	case test == nil:
	case k.value.Kind() == reflect.String:
		l.checkText(k, where, k.value.String(), test)
	case k.value.Kind() == reflect.Slice:
		for i := range k.value.Len() {
			l.checkText(k, where, k.value.Index(i).String(), test)
		}
	}
}

func (l *loader) checkText(k key, where, text string, test func(string) error) {
	if text == "" && k.path != "server_name" {
		return
	}
	if err := test(text); err != nil {
		l.fault(k.path, where, "%s: %s", k.path, err)
	}
}

func checkBounds(k key) error {
	if !k.value.CanInt() {
		return nil
	}
	bound := func(name string) (int64, string, bool) {
		text := k.tag.Get(name)
		if text == "" {
			return 0, "", false
		}
		v := reflect.New(k.value.Type()).Elem()
		if err := setScalar(v, text); err != nil {
			panic("config: bad bound of " + k.path)
		}
		return v.Int(), text, true
	}
	if n, text, ok := bound("min"); ok && k.value.Int() < n {
		return fmt.Errorf("%s is less than %s", show(k.value), text)
	}
	if n, text, ok := bound("max"); ok && k.value.Int() > n {
		return fmt.Errorf("%s is more than %s", show(k.value), text)
	}
	return nil
}

// show writes a scalar as it stands in a file.
func show(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return shortDuration(x)
	case Size:
		return x.String()
	}
	return fmt.Sprint(v.Interface())
}

// shortDuration drops the zeros of "1h0m0s".
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

var kinds = map[string]func(string) error{
	"listen":   checkListen,
	"url":      checkURL("http", "https"),
	"postgres": checkURL("postgres", "postgresql"),
	"smtp":     checkURL("smtp", "smtps"),
	"nats":     checkNATS,
	"server":   checkServerName,
	"identity": checkIdentity,
	"file":     checkFile,
	"email":    checkMail,
}

func checkListen(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is no address such as 127.0.0.1:8008", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("%q has no port between 0 and 65535", s)
	}
	if strings.ContainsAny(host, " /") {
		return fmt.Errorf("%q has no valid host", s)
	}
	return nil
}

func checkURL(schemes ...string) func(string) error {
	return func(s string) error {
		u, err := url.Parse(s)
		if err != nil || !slices.Contains(schemes, u.Scheme) || (u.Host == "" && !strings.HasPrefix(u.Scheme, "postgres")) {
			// The text may hold a password: it is not repeated.
			return fmt.Errorf("is no address that begins with %s://", strings.Join(schemes, ":// or "))
		}
		return nil
	}
}

func checkNATS(s string) error {
	for _, one := range strings.Split(s, ",") {
		if err := checkURL("nats", "tls", "ws", "wss")(strings.TrimSpace(one)); err != nil {
			return err
		}
	}
	return nil
}

var hostName = regexp.MustCompile(`^[0-9A-Za-z.-]{1,255}$`)

// checkServerName is the grammar of server names.
//
// spec: appendices#server-name
func checkServerName(s string) error {
	bad := fmt.Errorf("%q is no server name such as example.org or example.org:8448", s)
	if len(s) > 230 { // leaves room for the rest of an ID of 255 bytes
		return bad
	}
	host := s
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host = s[:i]
		if n, err := strconv.ParseUint(s[i+1:], 10, 16); err != nil || n == 0 || len(s[i+1:]) > 5 {
			return bad
		}
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if a, err := netip.ParseAddr(inner); !ok || err != nil || !a.Is6() || a.Zone() != "" {
			return bad
		}
		return nil
	}
	if !hostName.MatchString(host) {
		return bad
	}
	return nil
}

// checkIdentity is checkServerName, or any server.
func checkIdentity(s string) error {
	if s == "*" {
		return nil
	}
	return checkServerName(s)
}

func checkNetwork(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	if _, err := netip.ParsePrefix(s); err != nil {
		return fmt.Errorf("%q is neither an address nor a network such as 10.0.0.0/8", s)
	}
	return nil
}

func checkFile(s string) error {
	info, err := os.Stat(s)
	if err != nil || info.IsDir() {
		return fmt.Errorf("there is no file %s", s)
	}
	return nil
}

func checkMail(s string) error {
	if _, err := mail.ParseAddress(s); err != nil {
		return fmt.Errorf("%q is no mail address", s)
	}
	return nil
}

// checkTogether looks at keys that depend on each other.
func (l *loader) checkTogether(c *Config) {
	pair := func(have, want, path, needs string) {
		if have != "" && want == "" && !l.bad[needs] {
			l.fault(path, l.where[path].text, "%s is given without %s", path, needs)
		}
	}
	pair(c.Federation.TLSCert, c.Federation.TLSKey, "federation.tls_cert", "federation.tls_key")
	pair(c.Federation.TLSKey, c.Federation.TLSCert, "federation.tls_key", "federation.tls_cert")
	if f := c.Federation; f.TLSCert != "" && f.TLSKey != "" && !l.bad["federation.tls_cert"] && !l.bad["federation.tls_key"] {
		if _, err := tls.LoadX509KeyPair(f.TLSCert, f.TLSKey); err != nil {
			l.fault("federation.tls_cert", l.where["federation.tls_cert"].text, "federation.tls_cert: %s and %s cannot be used: %s",
				f.TLSCert, f.TLSKey, strings.TrimPrefix(err.Error(), "tls: "))
		}
	}
	for _, file := range c.Federation.TrustedCA {
		if pem, err := os.ReadFile(file); err == nil && !l.bad["federation.trusted_ca"] && !x509.NewCertPool().AppendCertsFromPEM(pem) {
			l.fault("federation.trusted_ca", l.where["federation.trusted_ca"].text, "federation.trusted_ca: %s holds no certificate", file)
		}
	}
	pair(c.NATS.Credentials, c.NATS.URL, "nats.credentials", "nats.url")
	pair(c.Email.SMTP, c.Email.From, "email.smtp", "email.from")
	if c.DataDir == "" {
		l.fault("data_dir", l.where["data_dir"].text, "data_dir is empty")
	}
	// spec: c2s/getWellknownSupport (role, and one of the two ways to reach the contact)
	for i, contact := range c.WellKnown.Support.Contacts {
		if contact.Role == "" || contact.Email == "" && contact.Account == "" {
			path := "well_known.support.contacts"
			l.fault(path, l.where[path].text, "%s[%d] must have a role, and an email_address or a matrix_id", path, i)
		}
	}
}
