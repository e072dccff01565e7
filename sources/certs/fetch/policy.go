package fetch

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const (
	// maxURL is the maximum length of a URL in bytes, before and after it is escaped.
	maxURL = 2048
	// maxHosts is the maximum number of Config.Hosts.
	maxHosts = 1000
)

// usualPort is the default port of each scheme that may be used.
var usualPort = map[string]uint16{"http": 80, "https": 443}

// A policy says which servers may be asked.
type policy struct {
	hosts  map[endpoint]bool
	bases  []*url.URL // whose path ends in a slash
	mirror *url.URL   // like a base; nil if there is none
}

// An endpoint is a host in its canonical form and a port.
type endpoint struct {
	host string
	port uint16
}

// A target is a request that may be made.
type target struct {
	url *url.URL
	// own is true if the operator has configured the host for this purpose, so that its address may
	// be private.
	own bool
}

func (t target) host() string { return t.url.Hostname() }

// newPolicy checks the configuration.
func newPolicy(cfg Config) (policy, error) {
	p := policy{hosts: map[endpoint]bool{}}
	var errs []error
	if len(cfg.Hosts) > maxHosts {
		errs = append(errs, fmt.Errorf("%d allowed hosts: name at most %d", len(cfg.Hosts), maxHosts))
	}
	for _, entry := range cfg.Hosts {
		if err := p.addHost(entry); err != nil {
			errs = append(errs, fmt.Errorf("allowed host %q: %w", Shown(entry), err))
		}
	}
	for _, text := range cfg.Bases {
		base, err := parseBase(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("base URL %q: %w", Shown(text), err))
			continue
		}
		p.bases = append(p.bases, base)
	}
	if cfg.Mirror != "" {
		var err error
		if p.mirror, err = parseBase(cfg.Mirror); err != nil {
			errs = append(errs, fmt.Errorf("mirror URL %q: %w", Shown(cfg.Mirror), err))
		}
	}
	return p, errors.Join(errs...)
}

// Shown returns a configured URL in a form for errors and logs: without what may be a password,
// which is everything before the last @ and after a question mark or a number sign.
func Shown(text string) string {
	scheme, rest, found := strings.Cut(text, "://")
	if found {
		scheme += "://"
	} else {
		scheme, rest = "", text
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = "…" + rest[at:]
	}
	if end := strings.IndexAny(rest, "?#"); end >= 0 {
		rest = rest[:end+1] + "…"
	}
	return scheme + rest
}

// addHost adds an entry of Config.Hosts.
func (p *policy) addHost(entry string) error {
	if strings.ContainsAny(entry, "/?#@") {
		return errors.New("write just a host, or host:port, without scheme or path")
	}
	if a, err := netip.ParseAddr(entry); err == nil && a.Is6() {
		entry = "[" + entry + "]"
	}
	host, port, err := splitHost(entry)
	if err != nil {
		return err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if why := faultOfEntry(a); why != "" {
			return errors.New(why)
		}
	}
	if port != 0 {
		p.hosts[endpoint{host, port}] = true
		return nil
	}
	for _, port := range usualPort {
		p.hosts[endpoint{host, port}] = true
	}
	return nil
}

// parseBase reads a URL that the operator has configured and below which files are.
func parseBase(text string) (*url.URL, error) {
	const write = "write http://<host>/<path> or https://<host>/<path>"
	r, err := parseURL(text)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %s", err, write)
	case r.query != "":
		return nil, fmt.Errorf("it has a query: %s", write)
	case strings.Contains(text, "#"):
		return nil, fmt.Errorf("it has a fragment: %s", write)
	}
	if a, err := netip.ParseAddr(r.host); err == nil {
		if why := faultOfEntry(a); why != "" {
			return nil, errors.New(why)
		}
	}
	if !strings.HasSuffix(r.path, "/") {
		r.path += "/"
	}
	return r.url()
}

// allowed returns the canonical form of a URL that a certificate names, or an error that says why
// it may not be requested.
func (p *policy) allowed(raw string) (canonical string, why error) {
	r, err := parseURL(raw)
	switch {
	case err != nil:
		return "", err
	case !p.hosts[r.endpoint]:
		return "", errNotAllowed
	case p.mirror != nil && r.query != "":
		return "", errors.New("it has a query, by which the files of a mirror cannot be told apart")
	}
	if canonical = r.String(); len(canonical) > maxURL {
		return "", fmt.Errorf("it is longer than %d bytes", maxURL)
	}
	return canonical, nil
}

var errNotAllowed = errors.New("it is not on an allowed host")

// target returns the request for a URL, which goes to the mirror if there is one.
func (p *policy) target(kind Kind, raw string) (target, error) {
	if kind.base() == EKCertificate {
		return p.belowBase(raw)
	}
	canonical, err := p.allowed(raw)
	if err != nil || canonical != raw {
		return target{}, errNotAllowed
	}
	at := canonical
	if p.mirror != nil {
		_, rest, _ := strings.Cut(canonical, "://")
		at = p.mirror.String() + rest
	}
	u, err := url.Parse(at)
	if err != nil {
		return target{}, errNotAllowed
	}
	return target{url: u, own: p.mirror != nil}, nil
}

// belowBase returns the request for a URL that is a file directly below a base.
func (p *policy) belowBase(raw string) (target, error) {
	r, err := parseURL(raw)
	if err != nil || r.query != "" || strings.Contains(raw, "#") {
		return target{}, errNotAllowed
	}
	u, err := r.url()
	if err != nil {
		return target{}, errNotAllowed
	}
	under := func(base *url.URL) bool {
		name, found := strings.CutPrefix(u.EscapedPath(), base.EscapedPath())
		return found && name != "" && !strings.Contains(name, "/") && u.Scheme == base.Scheme && u.Host == base.Host
	}
	if !slices.ContainsFunc(p.bases, under) {
		return target{}, errNotAllowed
	}
	return target{url: u, own: true}, nil
}

// redirected returns the request to which a server has redirected. It must be on the same host and
// port, or change from http to https on their default ports, and must still be allowed.
func (p *policy) redirected(from target, to *url.URL) (target, error) {
	r, err := parseURL(to.String())
	if err != nil {
		return target{}, err
	}
	u, err := r.url()
	if err != nil {
		return target{}, err
	}
	was := endpoint{from.host(), portOf(from.url)}
	upgrade := from.url.Scheme == "http" && was.port == 80 && u.Scheme == "https" && r.port == 443
	switch {
	case from.url.Scheme == "https" && u.Scheme != "https":
		return target{}, errors.New("from https to http")
	case r.host != was.host || r.port != was.port && !upgrade:
		return target{}, errors.New("to another host or port")
	case !from.own && !p.hosts[r.endpoint]:
		return target{}, errors.New("to a port that is not allowed")
	}
	return target{url: u, own: from.own}, nil
}

func portOf(u *url.URL) uint16 {
	if port, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
		return uint16(port)
	}
	return usualPort[u.Scheme]
}

// A reference is an http or https URL that all software reads in the same way.
type reference struct {
	scheme string
	endpoint
	path  string // escaped; begins with a slash
	query string // escaped; with its question mark, or empty
}

func (r reference) String() string {
	host := r.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if r.port != usualPort[r.scheme] {
		host += ":" + strconv.Itoa(int(r.port))
	}
	return r.scheme + "://" + host + r.path + r.query
}

// url returns the URL for package net/http.
func (r reference) url() (*url.URL, error) {
	u, err := url.Parse(r.String())
	if err != nil {
		return nil, errors.New("it is not a URL")
	}
	return u, nil
}

// parseURL reads a URL that may be an attacker's, and refuses everything that some software might
// read in another way: user names, backslashes, characters outside of ASCII, control characters,
// escapes in the host, encoded slashes, dot segments, and hosts and ports that are not in their
// usual form. Spaces around the URL, which vendors have in their certificates, are removed, and
// spaces in its path are escaped. A fragment, which no server sees, is dropped.
func parseURL(raw string) (r reference, err error) {
	if len(raw) > maxURL {
		return r, fmt.Errorf("it is longer than %d bytes", maxURL)
	}
	raw = strings.Trim(raw, " ")
	if strings.ContainsFunc(raw, func(c rune) bool { return c < ' ' || c > '~' || c == '\\' }) {
		return r, errors.New("it has a character that is not allowed in a URL")
	}
	scheme, rest, found := strings.Cut(raw, "://")
	r.scheme = strings.ToLower(scheme)
	if usualPort[r.scheme] == 0 || !found {
		return r, errors.New("it is neither http:// nor https://")
	}
	rest, _, _ = strings.Cut(rest, "#")
	rest, query, asks := strings.Cut(rest, "?")
	if asks {
		r.query = "?" + escapeSpaces(query)
	}
	authority, path, _ := strings.Cut(rest, "/")
	if strings.Contains(authority, "@") {
		return r, errors.New("it has a user name or a password: leave them out, no server is asked with them")
	}
	if r.host, r.port, err = splitHost(authority); err != nil {
		return r, err
	}
	if r.port == 0 {
		r.port = usualPort[r.scheme]
	}
	r.path = "/" + escapeSpaces(path)
	return r, errors.Join(checkPath(r.path), checkQuery(r.query))
}

func escapeSpaces(s string) string { return strings.ReplaceAll(s, " ", "%20") }

// checkPath returns an error if software may differ in how it reads an escaped path.
func checkPath(path string) error {
	// What RFC 3986, 3.3 allows in a path without an escape, and the slash.
	const plain = "-._~!$&'()*+,;=:@/%"
	if strings.ContainsFunc(path, func(c rune) bool { return !alphanumeric(c) && !strings.ContainsRune(plain, c) }) {
		return errors.New("its path has a character that must be escaped")
	}
	decoded, err := url.PathUnescape(path)
	if err != nil {
		return errors.New("its path has an invalid escape")
	}
	if strings.ContainsFunc(decoded, func(c rune) bool { return c < ' ' || c == 0x7f || c == '\\' }) ||
		strings.Count(decoded, "/") != strings.Count(path, "/") {
		return errors.New("its path has an escaped slash, backslash or control character")
	}
	for segment := range strings.SplitSeq(decoded, "/") {
		if name, _, _ := strings.Cut(segment, ";"); name == "." || name == ".." {
			return errors.New("its path has a dot segment")
		}
	}
	return nil
}

// checkQuery returns an error if a query is malformed.
func checkQuery(query string) error {
	if _, err := url.PathUnescape(query); err != nil || strings.ContainsAny(query, "\"<>`{}|^[]") {
		return errors.New("its query has a character that must be escaped, or an invalid escape")
	}
	return nil
}

func alphanumeric(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// splitHost reads host or host:port, where an IPv6 address is in brackets. It returns the host in
// lower case, or the address as in RFC 5952, without brackets. The port is zero if there is none.
func splitHost(s string) (host string, port uint16, err error) {
	host = s
	if colon := strings.LastIndexByte(s, ':'); colon > strings.LastIndexByte(s, ']') {
		host = s[:colon]
		if port, err = parsePort(s[colon+1:]); err != nil {
			return "", 0, err
		}
	}
	if inner, found := strings.CutPrefix(host, "["); found {
		inner, found = strings.CutSuffix(inner, "]")
		a, err := netip.ParseAddr(inner)
		if !found || err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" {
			return "", 0, errors.New("the host in brackets is not an IPv6 address without a zone")
		}
		return a.String(), port, nil
	}
	host = strings.ToLower(host)
	return host, port, checkHost(host)
}

func parsePort(digits string) (uint16, error) {
	port, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || port == 0 || digits[0] < '1' || digits[0] > '9' {
		return 0, errors.New("the port is not a number from 1 to 65535")
	}
	return uint16(port), nil
}

// checkHost returns an error unless a host is a name (RFC 1123, 2.1) or an IPv4 address of four
// decimal numbers.
func checkHost(host string) error {
	const maxName, maxLabel = 253, 63
	switch {
	case host == "":
		return errors.New("the host is empty")
	case strings.HasSuffix(host, "."):
		return errors.New("the host ends in a dot: leave it out")
	case len(host) > maxName:
		return fmt.Errorf("the host is longer than %d bytes", maxName)
	}
	last := ""
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > maxLabel || strings.ContainsFunc(label, func(c rune) bool {
			return !alphanumeric(c) && c != '-' && c != '_'
		}) {
			return errors.New("the host may only have letters, digits, hyphens and dots: " +
				"write other letters in their ASCII form, xn--…")
		}
		last = label
	}
	// The last label of a name is not a number (RFC 1123, 2.1), in any notation.
	if strings.Trim(last, "0123456789") != "" && !strings.HasPrefix(last, "0x") {
		return nil
	}
	if a, err := netip.ParseAddr(host); err != nil || !a.Is4() {
		return errors.New("the host ends in a number but is not an IPv4 address of four decimal numbers")
	}
	return nil
}
