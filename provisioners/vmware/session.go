package vmware

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sync/singleflight"

	"berth/internal/span"
	"berth/reservation"
)

const (
	// callLimit is how long one API call may take before the vCenter counts as not answering. Everything slow in vSphere
	// is a task, and calls that start one answer within seconds.
	callLimit = 60 * time.Second
	// loginLimit bounds connecting and logging in together: identity sources of a vCenter (LDAP) are slow at times.
	loginLimit = 60 * time.Second
	// keepAlive is how long a session may be idle before we touch it. A vCenter ends it after 30 minutes by default.
	keepAlive = 5 * time.Minute
	// refusedFor is how long a refused login is not tried again, because a vCenter locks an account after five wrong
	// passwords, and a hundred waiting loads would see to that at once.
	refusedFor = 30 * time.Second
)

// session is the process's only session at one vCenter. It is a soap.RoundTripper: a call that finds the session
// expired logs in again, once for all callers, and is repeated.
type session struct {
	site    Site
	url     *url.URL
	log     zerolog.Logger
	observe func(method string)
	soap    *soap.Client
	cookies *cookies
	logins  singleflight.Group
	context context.Context // ends with close

	mu         sync.Mutex
	client     *vim25.Client // nil until connected
	generation int           // counts the logins; 0 is "never"
	valid      bool          // logged in, as far as we know
	lastCall   time.Time
	refusal    error // the last login's, while it is not to be tried again
	refusedAt  time.Time
}

func newSession(ctx context.Context, field string, site Site, log zerolog.Logger, observe func(method string)) (*session, error) {
	var faults []error
	fault := func(name, value, remedy string) {
		faults = append(faults, &reservation.FieldError{Field: field + "." + name, Value: value, Remedy: remedy})
	}
	u, err := url.Parse(site.URL)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "":
		fault("url", site.URL, "write it as https://vcenter.example.org/sdk")
	case u.User != nil:
		fault("url", u.Redacted(), "leave user and password out: they belong into user and credential")
	}
	if site.User == "" {
		fault("user", "", "give the user to log in as, such as berth@vsphere.local")
	}
	if site.Password == nil {
		fault("credential", "", "name the secret that holds the user's password")
	}
	config, err := tlsConfig(field, site)
	if err != nil {
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = vim25.Path
	}
	if site.Insecure {
		log.Warn().Str("url", u.String()).Msg("the certificate of this vCenter is NOT checked (insecure: true): whoever can " +
			"redirect the connection gets the password; set thumbprint or ca_file instead")
	}
	s := &session{site: site, url: u, log: log, observe: observe, context: ctx, soap: soap.NewClient(u, false), cookies: &cookies{}}
	transport := s.soap.DefaultTransport()
	// govmomi's own dialer ends with no context and takes any authority's certificate over a pinned one.
	transport.DialTLSContext = nil
	transport.TLSClientConfig = config
	transport.MaxIdleConnsPerHost = 32
	s.soap.Jar = s.cookies
	s.soap.UserAgent = "berth"
	s.cookies.clear()
	go s.keepAlive()
	return s, nil
}

// ThumbprintError says that a vCenter shows another certificate than the pinned one.
type ThumbprintError struct {
	Site     string
	Pinned   string // as the site says it
	Received string // SHA-256 of what the server shows
}

func (e *ThumbprintError) Error() string {
	return fmt.Sprintf("site %s pins the thumbprint %s, and its server shows a certificate with SHA-256 %s", e.Site, e.Pinned, e.Received)
}

func tlsConfig(field string, site Site) (*tls.Config, error) {
	set := 0
	for _, is := range []bool{site.CAFile != "", site.Thumbprint != "", site.Insecure} {
		if is {
			set++
		}
	}
	if set > 1 {
		return nil, &reservation.FieldError{Field: field + ".thumbprint", Value: site.Thumbprint, Remedy: "set only one of thumbprint, ca_file and insecure"}
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	switch {
	case site.CAFile != "":
		pem, err := os.ReadFile(site.CAFile)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", &reservation.FieldError{Field: field + ".ca_file", Value: site.CAFile, Remedy: "give a readable PEM file"}, err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &reservation.FieldError{Field: field + ".ca_file", Value: site.CAFile, Remedy: "give a PEM file that holds a certificate"}
		}
	case site.Thumbprint != "":
		pinned, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(site.Thumbprint))
		if err != nil || (len(pinned) != sha256.Size && len(pinned) != sha1.Size) {
			return nil, &reservation.FieldError{Field: field + ".thumbprint", Value: site.Thumbprint,
				Remedy: "give the SHA-256 (64 hex digits) or SHA-1 (40) of the server's certificate"}
		}
		// The pin takes the place of the authorities' judgement: VerifyConnection is called for every handshake.
		config.InsecureSkipVerify = true
		config.VerifyConnection = func(state tls.ConnectionState) error {
			leaf := state.PeerCertificates[0].Raw
			received := sha256.Sum256(leaf)
			shown := received[:]
			if len(pinned) == sha1.Size {
				old := sha1.Sum(leaf)
				shown = old[:]
			}
			if subtle.ConstantTimeCompare(shown, pinned) == 1 {
				return nil
			}
			return &ThumbprintError{Site: site.Name, Pinned: site.Thumbprint, Received: hex.EncodeToString(received[:])}
		}
	case site.Insecure:
		config.InsecureSkipVerify = true
	}
	return config, nil
}

// connect returns the client of the session, logged in.
func (s *session) connect(ctx context.Context) (*vim25.Client, error) {
	if _, err := s.ready(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.client, nil
}

// RoundTrip is part of soap.RoundTripper.
func (s *session) RoundTrip(ctx context.Context, request, response soap.HasFault) error {
	for first := true; ; first = false {
		generation, err := s.ready(ctx)
		if err != nil {
			return err
		}
		err = s.send(ctx, request, response)
		if !first || !notAuthenticated(err, response) {
			return err
		}
		s.expire(generation)
		// A fault that was decoded once stays in the response, and would be found again.
		reflect.ValueOf(response).Elem().SetZero()
	}
}

// send sends one call. A call that the vCenter does not answer in time is a fault of its own: it must not be taken for
// the end of the caller's context.
func (s *session) send(ctx context.Context, request, response soap.HasFault) error {
	method := strings.TrimSuffix(reflect.TypeOf(request).Elem().Name(), "Body")
	limit := callLimit
	if method == "WaitForUpdatesEx" {
		limit += updatesWait
	}
	s.observe(method)
	s.mu.Lock()
	s.lastCall = time.Now()
	s.mu.Unlock()
	call, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	call, ended := span.Call(call, "vsphere", method, attribute.String("server.address", s.url.Host), attribute.String("berth.site", s.site.Name))
	err := s.soap.RoundTrip(call, request, response)
	ended(err)
	if err != nil && ctx.Err() == nil && call.Err() != nil {
		return fmt.Errorf("site %s: the vCenter at %s did not answer %s within %s", s.site.Name, s.url.Host, method, limit)
	}
	return err
}

// notAuthenticated says whether a call found that there is no session. Reading properties without one is no fault of
// the call: each property is then missing for that reason.
func notAuthenticated(err error, response soap.HasFault) bool {
	if err != nil {
		_, ok := faultAs[*types.NotAuthenticated](err)
		return ok
	}
	var objects []types.ObjectContent
	switch body := response.(type) {
	case *methods.RetrievePropertiesBody:
		objects = body.Res.Returnval
	case *methods.RetrievePropertiesExBody:
		if body.Res.Returnval != nil {
			objects = body.Res.Returnval.Objects
		}
	}
	for _, object := range objects {
		for _, missing := range object.MissingSet {
			if _, ok := missing.Fault.Fault.(*types.NotAuthenticated); ok {
				return true
			}
		}
	}
	return false
}

// expire notes that the session of a login is over, unless somebody has logged in since.
func (s *session) expire(generation int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.generation == generation && s.valid {
		s.valid = false
		s.log.Info().Msg("the session at the vCenter has expired; logging in again")
	}
}

// ready connects and logs in if that is needed, and returns the login's generation. Everybody who comes while a login
// is under way shares its outcome.
func (s *session) ready(ctx context.Context) (int, error) {
	s.mu.Lock()
	valid, generation, refusal, refusedAt := s.valid, s.generation, s.refusal, s.refusedAt
	s.mu.Unlock()
	if valid {
		return generation, nil
	}
	if err := s.context.Err(); err != nil {
		return 0, fmt.Errorf("site %s: the module is closed", s.site.Name)
	}
	if refusal != nil && time.Since(refusedAt) < refusedFor {
		return 0, fmt.Errorf("%w (not tried again before %s, so that the account is not locked)", refusal, refusedAt.Add(refusedFor).Format("15:04:05"))
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case result := <-s.logins.DoChan("", s.logIn):
		if result.Err != nil {
			return 0, result.Err
		}
		return result.Val.(int), nil
	}
}

func (s *session) logIn() (any, error) {
	s.mu.Lock()
	client, valid, generation := s.client, s.valid, s.generation
	s.mu.Unlock()
	if valid {
		return generation, nil
	}
	ctx, cancel := context.WithTimeout(s.context, loginLimit)
	defer cancel()
	fault := func(what string, err error) error {
		if ctx.Err() != nil && s.context.Err() == nil {
			return fmt.Errorf("site %s: %s %s: no answer within %s", s.site.Name, what, s.url.Host, loginLimit)
		}
		return fmt.Errorf("site %s: %s %s: %w", s.site.Name, what, s.url.Host, err)
	}
	if client == nil {
		var err error
		if client, err = s.dial(ctx); err != nil {
			return nil, fault("connect to the vCenter at", err)
		}
	}
	password, err := s.site.Password()
	if err != nil {
		return nil, fmt.Errorf("site %s: read the password of %s: %w", s.site.Name, s.site.User, err)
	}
	// A vCenter refuses a login that comes with a live session's cookie.
	s.cookies.clear()
	s.observe("Login")
	_, err = methods.Login(ctx, s.soap, &types.Login{This: *client.ServiceContent.SessionManager, UserName: s.site.User, Password: password})
	if err != nil {
		err = fault("log in as "+s.site.User+" at", err)
		if _, refused := faultAs[types.BaseInvalidLogin](err); refused {
			s.mu.Lock()
			s.refusal, s.refusedAt = err, time.Now()
			s.mu.Unlock()
		}
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client, s.valid, s.refusal, s.lastCall = client, true, nil, time.Now()
	s.generation++
	s.log.Info().Str("url", s.url.String()).Str("user", s.site.User).Str("version", client.ServiceContent.About.Version).Msg("logged in to the vCenter")
	return s.generation, nil
}

// dial reads what the vCenter is, with the API version that it speaks itself: an older one refuses a newer version.
func (s *session) dial(ctx context.Context) (*vim25.Client, error) {
	s.soap.Namespace = "urn:" + vim25.Namespace
	s.soap.Version = vim25.Version
	if version, err := s.apiVersion(ctx); err != nil {
		return nil, err
	} else if version != "" {
		s.soap.Version = version
	}
	s.observe("RetrieveServiceContent")
	content, err := methods.GetServiceContent(ctx, s.soap)
	if err != nil {
		return nil, err
	}
	if content.SessionManager == nil || content.ViewManager == nil || content.TaskManager == nil || content.SearchIndex == nil {
		return nil, fmt.Errorf("%s is no vCenter (%s)", s.url.Host, content.About.FullName)
	}
	return &vim25.Client{Client: s.soap, ServiceContent: content, RoundTripper: s}, nil
}

func (s *session) apiVersion(ctx context.Context) (string, error) {
	u := *s.url
	u.Path = path.Join(vim25.Path, "vimServiceVersions.xml")
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	response, err := s.soap.Client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotFound {
		return "", nil
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("GET %s: %s", u.Path, response.Status)
	}
	var versions struct {
		Version string `xml:"namespace>version"`
	}
	if err := xml.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&versions); err != nil {
		return "", fmt.Errorf("read %s: %w", u.Path, err)
	}
	return versions.Version, nil
}

// keepAlive touches an idle session until close.
func (s *session) keepAlive() {
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for {
		select {
		case <-s.context.Done():
			return
		case <-tick.C:
			s.mu.Lock()
			client, idle := s.client, time.Since(s.lastCall)
			s.mu.Unlock()
			if client == nil || idle < keepAlive/2 {
				continue
			}
			if _, err := methods.GetCurrentTime(s.context, client); err != nil {
				s.log.Warn().Err(err).Msg("cannot keep the session at the vCenter alive")
			}
		}
	}
}

// logOut ends the session at the vCenter. The session's context has ended by then.
func (s *session) logOut(ctx context.Context) {
	s.mu.Lock()
	client, valid := s.client, s.valid
	s.valid = false
	s.mu.Unlock()
	if valid {
		s.observe("Logout")
		if _, err := methods.Logout(ctx, s.soap, &types.Logout{This: *client.ServiceContent.SessionManager}); err != nil {
			s.log.Debug().Err(err).Msg("log out of the vCenter")
		}
	}
	s.soap.CloseIdleConnections()
}

// cookies is a cookie jar that can be emptied while others use it.
type cookies struct {
	mu  sync.Mutex
	jar http.CookieJar
}

func (c *cookies) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jar, _ = cookiejar.New(nil) // it returns no error without options
}

func (c *cookies) current() http.CookieJar {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.jar
}

// SetCookies is part of http.CookieJar.
func (c *cookies) SetCookies(u *url.URL, set []*http.Cookie) { c.current().SetCookies(u, set) }

// Cookies is part of http.CookieJar.
func (c *cookies) Cookies(u *url.URL) []*http.Cookie { return c.current().Cookies(u) }
