package mirror

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits on the name of a file.
const (
	maxPath    = 1024 // bytes, with the host
	maxSegment = 200  // bytes; file systems take 255, and a temporary name is longer
	maxDepth   = 32   // folders
)

// Path returns the path of a URL's file below the folder of a mirror: <host>/<path>, where the host
// has its port unless that is the scheme's, and the path is decoded as by a web server. A web
// server whose root is the folder finds the file for <mirror_url>/<host>/<path>.
//
// The URL may be an attacker's. Path returns an error if the path could lead out of the host's
// folder, if some web server or file system could take it for another path, or if it cannot be the
// name of a file: it has an empty segment, a segment that begins with a dot, an encoded slash, a
// backslash, a control character or a query.
func Path(raw string) (string, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return "", errors.New("it is not a URL")
	case u.Scheme != "http" && u.Scheme != "https", u.Opaque != "", u.User != nil:
		return "", errors.New("it is not http://<host>/<path> or https://<host>/<path>")
	case u.RawQuery != "" || u.ForceQuery:
		return "", errors.New("it has a query, and a folder cannot tell two of them apart")
	}
	host, err := hostFolder(u)
	if err != nil {
		return "", err
	}
	escaped := strings.ToLower(u.EscapedPath())
	if strings.Contains(escaped, "%2f") || strings.Contains(escaped, "%5c") {
		return "", errors.New("it has an encoded slash, which web servers read in two ways")
	}
	rest, found := strings.CutPrefix(u.Path, "/")
	if !found {
		return "", errors.New("it names no file")
	}
	segments := strings.Split(rest, "/")
	if len(segments) > maxDepth {
		return "", fmt.Errorf("its path has more than %d segments", maxDepth)
	}
	for _, s := range segments {
		if err := checkSegment(s); err != nil {
			return "", err
		}
	}
	name := path.Join(host, rest)
	if len(name) > maxPath {
		return "", fmt.Errorf("its path has more than %d bytes", maxPath)
	}
	return name, nil
}

// hostFolder returns the name of a host's folder.
func hostFolder(u *url.URL) (string, error) {
	host := strings.ToLower(u.Host)
	if usual := map[string]string{"http": ":80", "https": ":443"}[u.Scheme]; strings.HasSuffix(host, usual) {
		host = strings.TrimSuffix(host, usual)
	}
	ok := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("-._:[]", r)
	}
	if strings.ContainsFunc(host, func(r rune) bool { return !ok(r) }) || strings.HasSuffix(host, ":") {
		return "", errors.New("its host is not a valid host name or address")
	}
	return host, checkSegment(host)
}

// checkSegment returns an error if s cannot be the name of a file or a folder.
func checkSegment(s string) error {
	switch {
	case s == "":
		return errors.New("a part of its path is empty")
	case len(s) > maxSegment:
		return fmt.Errorf("a part of its path has more than %d bytes", maxSegment)
	case s[0] == '.':
		return errors.New("a part of its path begins with a dot")
	case !utf8.ValidString(s), strings.ContainsFunc(s, unicode.IsControl), strings.ContainsAny(s, `/\`):
		return errors.New("a part of its path has a character that no file name should have")
	}
	return nil
}
