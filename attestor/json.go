package attestor

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// The limits of a message beyond its size. Known members nest four levels deep. A response with a
// quote of 24 PCRs has 160 values, and no other message has more. Unknown members are skipped. A
// name costs more than its bytes, since the decoder must find out whether it is a duplicate.
const (
	maxDepth  = 16
	maxTokens = 512
)

var errTokens = fmt.Errorf("more than %d values", maxTokens)

// decoder reads one JSON message. Names match exactly. It returns an error if an object has a name
// twice, if text is not UTF-8, or if bytes follow the message (RFC 7493, 2.1 and 2.3).
type decoder struct {
	dec    *jsontext.Decoder
	tokens int
}

// decode reads msg, which must be one object of at most limit bytes. member reads the value of a
// member, or skips it if it does not know the name.
func decode(msg []byte, limit int, member func(d *decoder, name string) error) error {
	switch {
	case len(msg) > limit:
		return fmt.Errorf("%d bytes, at most %d are allowed", len(msg), limit)
	case len(msg) == 0:
		return errors.New("it is empty")
	}
	d := &decoder{dec: jsontext.NewDecoder(bytes.NewBuffer(msg))}
	if err := d.object(member); err != nil {
		return err
	}
	if _, err := d.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return errors.New("bytes follow the object")
	}
	return nil
}

// token reads the next token. It is valid until the next token is read.
func (d *decoder) token() (jsontext.Token, error) {
	if d.tokens++; d.tokens > maxTokens {
		return jsontext.Token{}, errTokens
	}
	tok, err := d.dec.ReadToken()
	if err != nil {
		return jsontext.Token{}, syntaxError(err)
	}
	if d.dec.StackDepth() > maxDepth {
		return jsontext.Token{}, fmt.Errorf("nested more than %d levels deep", maxDepth)
	}
	return tok, nil
}

// syntaxError returns err without the parts that the sender chose: a name may have any length.
func syntaxError(err error) error {
	if syn, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return fmt.Errorf("not JSON at byte %d: %w", syn.ByteOffset, syn.Err)
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (d *decoder) object(member func(d *decoder, name string) error) error {
	tok, err := d.token()
	if err != nil {
		return err
	}
	if tok.Kind() != '{' {
		return fmt.Errorf("a JSON %s instead of an object", tok.Kind())
	}
	for {
		tok, err := d.token()
		if err != nil || tok.Kind() == '}' {
			return err
		}
		if err := member(d, tok.String()); err != nil {
			return err
		}
	}
}

// array reads an array of at most limit elements.
func (d *decoder) array(name string, limit int, element func() error) error {
	tok, err := d.token()
	if err != nil {
		return err
	}
	if tok.Kind() != '[' {
		return fmt.Errorf("%s: a JSON %s instead of an array", name, tok.Kind())
	}
	for n := 0; d.dec.PeekKind() != ']'; n++ {
		if n == limit {
			return fmt.Errorf("%s: more than %d elements", name, limit)
		}
		if err := element(); err != nil {
			return err
		}
	}
	_, err = d.token()
	return err
}

// value reads a string and returns it with its quotes. The result is
// valid until the next token is read.
func (d *decoder) value(name string) (jsontext.Value, error) {
	if d.tokens++; d.tokens > maxTokens {
		return nil, errTokens
	}
	if kind := d.dec.PeekKind(); kind != '"' {
		if _, err := d.dec.ReadToken(); err != nil {
			return nil, fmt.Errorf("%s: %w", name, syntaxError(err))
		}
		return nil, fmt.Errorf("%s: a JSON %s instead of a string", name, kind)
	}
	v, err := d.dec.ReadValue()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, syntaxError(err))
	}
	return v, nil
}

// text reads a string that is not empty and has at most limit bytes.
func (d *decoder) text(name string, limit int) (string, error) {
	v, err := d.value(name)
	if err != nil {
		return "", err
	}
	s, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if len(s) == 0 {
		return "", fmt.Errorf("%s: it is empty", name)
	}
	if len(s) > limit {
		return "", fmt.Errorf("%s: %d bytes, at most %d are allowed", name, len(s), limit)
	}
	return string(s), nil
}

// strictBase64 refuses trailing bits that are not part of the data, so that each value has only one
// encoding.
var strictBase64 = base64.StdEncoding.Strict()

// blob reads base64 (RFC 4648, 4) of 1 to limit bytes.
func (d *decoder) blob(name string, limit int) ([]byte, error) {
	b, err := d.maybeBlob(name, limit)
	if err == nil && len(b) == 0 {
		return nil, fmt.Errorf("%s: it is empty", name)
	}
	return b, err
}

// maybeBlob reads base64 (RFC 4648, 4) of at most limit bytes. It returns nil for an empty string.
func (d *decoder) maybeBlob(name string, limit int) ([]byte, error) {
	v, err := d.value(name)
	if err != nil {
		return nil, err
	}
	s := v[1 : len(v)-1]
	if bytes.IndexByte(s, '\\') >= 0 {
		if s, err = jsontext.AppendUnquote(nil, v); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if len(s) > strictBase64.EncodedLen(limit) {
		return nil, fmt.Errorf("%s: %d bytes of base64, at most %d are allowed",
			name, len(s), strictBase64.EncodedLen(limit))
	}
	b, err := strictBase64.AppendDecode(nil, s)
	// The base64 decoder skips line ends; if there were any, the length is wrong.
	if err != nil || strictBase64.EncodedLen(len(b)) != len(s) {
		return nil, fmt.Errorf("%s: not base64", name)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%s: %d bytes, at most %d are allowed", name, len(b), limit)
	}
	return b, nil
}

// exactly reads base64 of exactly size bytes.
func (d *decoder) exactly(name string, size int) ([]byte, error) {
	b, err := d.blob(name, size)
	if err == nil && len(b) != size {
		return nil, fmt.Errorf("%s: %d bytes: want %d", name, len(b), size)
	}
	return b, err
}

// number reads an integer from 0 to 999, without a fraction or an exponent.
func (d *decoder) number(name string) (int, error) {
	tok, err := d.token()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	if tok.Kind() != '0' {
		return 0, fmt.Errorf("%s: a JSON %s instead of a number", name, tok.Kind())
	}
	n, err := strconv.ParseUint(tok.String(), 10, 16)
	if err != nil || n > 999 {
		return 0, fmt.Errorf("%s: a number that is no integer of 0 to 999", name)
	}
	return int(n), nil
}

func (d *decoder) boolean(name string) (bool, error) {
	tok, err := d.token()
	if err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	if tok.Kind() != 't' && tok.Kind() != 'f' {
		return false, fmt.Errorf("%s: a JSON %s instead of true or false", name, tok.Kind())
	}
	return tok.Kind() == 't', nil
}

// null reports whether the next value is null. It reads nothing.
func (d *decoder) null() bool { return d.dec.PeekKind() == 'n' }

// skip skips one value.
func (d *decoder) skip() error {
	depth := d.dec.StackDepth()
	for {
		if _, err := d.token(); err != nil || d.dec.StackDepth() == depth {
			return err
		}
	}
}
