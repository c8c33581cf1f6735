package winrmtest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/rc4"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf16"

	//lint:ignore SA1019 NTLM's hash of a password is MD4 (MS-NLMP 3.3.2)
	"golang.org/x/crypto/md4"
)

// session is one connection's authentication: NTLM's belongs to the connection.
type session struct {
	mu        sync.Mutex
	negotiate []byte
	challenge []byte
	user      string
}

type sessionKey struct{}

type userKey struct{}

// User returns who runs a command, from the context that Exec gets.
func User(ctx context.Context) string {
	name, _ := ctx.Value(userKey{}).(string)
	return name
}

// authenticate returns who sent a request; "" after it has answered one that has no right to be here.
func (s *Server) authenticate(w http.ResponseWriter, r *http.Request) string {
	options := s.now()
	state, _ := r.Context().Value(sessionKey{}).(*session)
	if state == nil {
		state = &session{}
	}
	state.mu.Lock()
	defer state.mu.Unlock()
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case scheme == "" && state.user != "":
		return state.user
	case strings.EqualFold(scheme, "Basic") && options.Basic:
		name, password, ok := r.BasicAuth()
		if want, known := options.password(name); ok && known && hmac.Equal([]byte(want), []byte(password)) {
			s.count(func() int { s.logins++; return 0 })
			return name
		}
		s.count(func() int { s.refusals++; return 0 })
	case strings.EqualFold(scheme, "Negotiate"):
		message, err := base64.StdEncoding.DecodeString(rest)
		if err != nil || len(message) < 16 || !bytes.HasPrefix(message, []byte("NTLMSSP\x00")) {
			break
		}
		if binary.LittleEndian.Uint32(message[8:]) == 1 {
			state.user, state.negotiate, state.challenge = "", message, newChallenge(message)
			w.Header().Set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString(state.challenge))
			w.WriteHeader(http.StatusUnauthorized)
			return ""
		}
		name, ok := options.verify(state.negotiate, state.challenge, message)
		state.negotiate, state.challenge = nil, nil // a challenge is good for one answer
		if ok {
			state.user = name
			s.count(func() int { s.logins++; return 0 })
			return name
		}
		s.count(func() int { s.refusals++; return 0 })
	}
	w.Header().Add("WWW-Authenticate", "Negotiate")
	if options.Basic {
		w.Header().Add("WWW-Authenticate", `Basic realm="WSMAN"`)
	}
	w.WriteHeader(http.StatusUnauthorized)
	return ""
}

func (o Options) password(name string) (string, bool) {
	if o.Users == nil {
		return "", false
	}
	if _, after, found := strings.Cut(name, `\`); found {
		name = after
	}
	return o.Users(name)
}

// MS-NLMP 2.2.2.5 and 2.2.2.1.
const (
	flagUnicode     = 1 << 0
	flagTarget      = 1 << 2
	flagTargetKind  = 1 << 17 // a server's name
	flagTargetInfo  = 1 << 23
	flagKeyExchange = 1 << 30
	flagsEchoed     = 1<<4 | 1<<5 | 1<<15 | 1<<19 | 1<<29 | flagKeyExchange | 1<<31 // sign, seal, always sign, extended, 128, 56

	pairEnd       = 0
	pairComputer  = 1
	pairDomain    = 2
	pairFlags     = 6
	pairTimestamp = 7
	pairBindings  = 10
	flagMIC       = 2 // of pairFlags
)

const computerName = "WINRMTEST"

// newChallenge answers a NEGOTIATE_MESSAGE with a CHALLENGE_MESSAGE (MS-NLMP 2.2.1.2).
func newChallenge(negotiate []byte) []byte {
	asked := binary.LittleEndian.Uint32(negotiate[12:])
	name := wide(computerName)
	pair := func(id uint16, value []byte) []byte {
		out := binary.LittleEndian.AppendUint16(nil, id)
		return append(binary.LittleEndian.AppendUint16(out, uint16(len(value))), value...)
	}
	const from1601 = 116444736000000000 // 100 ns from 1601 to 1970
	stamp := binary.LittleEndian.AppendUint64(nil, uint64(time.Now().UnixNano()/100+from1601))
	info := bytes.Join([][]byte{pair(pairDomain, name), pair(pairComputer, name), pair(pairTimestamp, stamp), pair(pairEnd, nil)}, nil)
	const header = 56
	out := append([]byte("NTLMSSP\x00"), 2, 0, 0, 0)
	out = field(out, len(name), header)
	out = binary.LittleEndian.AppendUint32(out, asked&flagsEchoed|flagUnicode|flagTarget|flagTargetKind|flagTargetInfo)
	random := make([]byte, 8)
	rand.Read(random)
	out = append(out, random...)
	out = append(out, make([]byte, 8)...)
	out = field(out, len(info), header+len(name))
	out = append(out, make([]byte, 8)...) // version
	return append(append(out, name...), info...)
}

func field(out []byte, length, offset int) []byte {
	out = binary.LittleEndian.AppendUint16(out, uint16(length))
	out = binary.LittleEndian.AppendUint16(out, uint16(length))
	return binary.LittleEndian.AppendUint32(out, uint32(offset))
}

// verify checks an AUTHENTICATE_MESSAGE (MS-NLMP 2.2.1.3 and 3.3.2) and returns the user's name: the NTLMv2 response,
// the integrity code if there is one, and the TLS channel it is bound to if it is bound.
func (o Options) verify(negotiate, challenge, message []byte) (string, bool) {
	if challenge == nil || len(message) < 64 {
		return "", false
	}
	part := func(at int) []byte {
		length, offset := int(binary.LittleEndian.Uint16(message[at:])), int(binary.LittleEndian.Uint32(message[at+4:]))
		if offset < 0 || offset+length > len(message) {
			return nil
		}
		return message[offset : offset+length]
	}
	response, domain, user := part(20), narrow(part(28)), narrow(part(36))
	password, known := o.password(user)
	if !known || len(response) < 16+28 { // an NTLMv1 response is 24 bytes
		return "", false
	}
	hash := md4.New()
	hash.Write(wide(password))
	key := sum(hash.Sum(nil), wide(strings.ToUpper(user)+domain))
	proof, blob := response[:16], response[16:]
	if !hmac.Equal(proof, sum(key, challenge[24:32], blob)) {
		return "", false
	}
	pairs := map[uint16][]byte{}
	for rest := blob[28:]; len(rest) >= 4; {
		id, length := binary.LittleEndian.Uint16(rest), int(binary.LittleEndian.Uint16(rest[2:]))
		if id == pairEnd || 4+length > len(rest) {
			break
		}
		pairs[id], rest = rest[4:4+length], rest[4+length:]
	}
	if flags := pairs[pairFlags]; len(flags) == 4 && flags[0]&flagMIC != 0 {
		const at = 72 // of the code, behind the version
		if len(message) < at+16 {
			return "", false
		}
		session := sum(key, proof)
		if binary.LittleEndian.Uint32(message[60:])&flagKeyExchange != 0 {
			cipher, err := rc4.NewCipher(session)
			if err != nil {
				return "", false
			}
			session = bytes.Clone(part(52))
			cipher.XORKeyStream(session, session)
		}
		without := bytes.Clone(message)
		clear(without[at : at+16])
		if !hmac.Equal(message[at:at+16], sum(session, negotiate, challenge, without)) {
			return "", false
		}
	}
	if bound := pairs[pairBindings]; len(bound) == 16 && !bytes.Equal(bound, make([]byte, 16)) && !bytes.Equal(bound, bindings(o.Certificate)) {
		return "", false
	}
	return user, true
}

// bindings is MD5 over the gss_channel_bindings_struct of tls-server-end-point (RFC 5929); our certificates are signed
// with SHA-256.
func bindings(certificate tls.Certificate) []byte {
	leaf := sha256.Sum256(certificate.Certificate[0])
	data := append([]byte("tls-server-end-point:"), leaf[:]...)
	whole := binary.LittleEndian.AppendUint32(make([]byte, 16), uint32(len(data)))
	digest := md5.Sum(append(whole, data...))
	return digest[:]
}

func sum(key []byte, parts ...[]byte) []byte {
	mac := hmac.New(md5.New, key)
	for _, part := range parts {
		mac.Write(part)
	}
	return mac.Sum(nil)
}

func wide(text string) []byte {
	var out []byte
	for _, unit := range utf16.Encode([]rune(text)) {
		out = binary.LittleEndian.AppendUint16(out, unit)
	}
	return out
}

func narrow(text []byte) string {
	var units []uint16
	for ; len(text) >= 2; text = text[2:] {
		units = append(units, binary.LittleEndian.Uint16(text))
	}
	return string(utf16.Decode(units))
}
