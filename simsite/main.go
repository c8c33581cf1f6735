// Simsite runs a simulated site: a vCenter that serves the vSphere API, and guests that speak SSH. Worker and starter run
// against it with nothing but BERTH_CATALOG set to the catalog that it writes.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"berth/internal/simsite"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand(os.Stdout, os.Stderr).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "simsite:", err)
		os.Exit(1)
	}
}

func newCommand(out, errs io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "simsite",
		Short:         "A simulated site: a vCenter with the vSphere API, and guests that speak SSH",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(out)
	root.SetErr(errs)
	root.AddCommand(serveCommand(out, errs), checkCommand(out), readyCommand())
	return root
}

// ready is the line that says that the site serves.
type ready struct {
	URL        string `json:"url"`
	User       string `json:"user"`
	Thumbprint string `json:"thumbprint"`
	Control    string `json:"control,omitempty"`
	Catalog    string `json:"catalog"`
	Dir        string `json:"dir"`
	Computers  int    `json:"computers"`
}

func serveCommand(out, errs io.Writer) *cobra.Command {
	var o simsite.Options
	var script, level string
	var network bool
	var user int
	c := &cobra.Command{
		Use:   "serve --dir DIR",
		Short: "Run a site until SIGINT or SIGTERM",
		Long: `Runs a simulated site until SIGINT or SIGTERM.

DIR keeps what lasts over restarts: the key that logs in to guests (keys/linux-root), the vCenter's
password (secrets/vcenter-lab) and its certificate (tls/). DIR/catalog.yaml is written anew at each
start, so that worker and starter need no more than

    BERTH_CATALOG=DIR/catalog.yaml

VMs do not outlive the site: after a restart there are the templates and nothing else. Give --listen,
--control and --guests fixed ports where programs that run on must find it again.

When the site serves, one line of JSON is printed: url, user, thumbprint, control, catalog, dir,
computers. Logs go to standard error.

The control API (--control) changes the site while it runs:

    GET    /status                  guests with their times, counts by VM, API calls by method
    GET    /guests/NAME             one guest
    POST   /guests/NAME             {"loads": [...]}: how a computer behaves from its next load on
    POST   /guests/NAME/do/ACTION   reboot, power-off, hang, drop, new-key
    GET    /guests/NAME/files/PATH  a file of the guest's disk
    POST   /expire-sessions         every session of the vCenter ends
    POST   /fault                   {"method": "CloneVM_Task", "computer": "vm-01", "fault": "NoDiskSpace", "times": 2}
    DELETE /fault                   no faults any more
    POST   /computers               [{"name": "vm-99"}]: more computers; the catalog is written anew
    POST   /calls/reset             API calls are counted anew

A script says what the site holds and how it behaves; internal/simsite/demo.yaml is one, and is used
when neither --script nor --computers is given.`,
		Example: `  simsite serve --dir var/site
  simsite serve --dir var/site --computers 300
  simsite serve --dir var/site --script site.yaml --listen 127.0.0.1:8989 --control 127.0.0.1:8990 --guests 127.0.0.1:22001`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logLevel, err := zerolog.ParseLevel(level)
			if err != nil {
				return fmt.Errorf("--log-level is %q: use debug, info, warn or error", level)
			}
			if network {
				if o.Network, err = ownNetwork(); err != nil {
					return fmt.Errorf("--own-network: %w", err)
				}
			}
			if user != 0 {
				if err := become(user); err != nil {
					return fmt.Errorf("--user %d: %w", user, err)
				}
			}
			if network && !cmd.Flags().Changed("listen") {
				o.Listen = ""
			}
			o.Logger = zerolog.New(zerolog.SyncWriter(errs)).Level(logLevel).With().Timestamp().Logger()
			return serve(cmd.Context(), o, script, out)
		},
	}
	flags := c.Flags()
	flags.StringVar(&o.Dir, "dir", "", "`folder` of the site's files; made if it is not there")
	flags.StringVar(&script, "script", "", "`file` that says what the site holds and how it behaves")
	flags.IntVar(&o.Computers, "computers", 0, "`number` of computers that just work, beside those of the script")
	flags.StringVar(&o.Listen, "listen", "127.0.0.1:0", "loopback `address` of the vCenter; port 0 takes a free one")
	flags.StringVar(&o.Control, "control", "127.0.0.1:0", "loopback `address` of the control API; port 0 takes a free one, \"\" is none")
	flags.StringVar(&o.Guests, "guests", "", "loopback `address` of the first guest, such as 127.0.0.1:22001; each further one takes the next port (default: port 22001 of an address of 127.64.0.0/10 that nobody uses)")
	flags.BoolVar(&network, "own-network", false, "answer not on the loopback but on the last 256 addresses of the network that this machine is on, which becomes theirs: for a container with NET_ADMIN")
	flags.IntVar(&user, "user", 0, "`number` of the user to become once the network is there")
	flags.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	if err := c.MarkFlagRequired("dir"); err != nil {
		panic(err) // the flag is defined above
	}
	return c
}

func serve(ctx context.Context, o simsite.Options, script string, out io.Writer) error {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return err
	}
	o.Dir = dir
	if o.Script, err = readScript(script, o.Computers); err != nil {
		return err
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	// The simulator keeps datastores in the temporary folder. In a folder of the site's they go with it, whatever ends it.
	temporary := filepath.Join(dir, "tmp")
	if err := os.RemoveAll(temporary); err != nil {
		return err
	}
	if err := os.MkdirAll(temporary, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if err := os.Setenv("TMPDIR", temporary); err != nil {
		return err
	}
	stdlog.SetFlags(0)
	stdlog.SetOutput(o.Logger.With().Str("from", "vcsim").Logger().Level(zerolog.DebugLevel))

	site, err := simsite.Start(ctx, o)
	if err != nil {
		return err
	}
	defer site.Stop()
	line, err := json.Marshal(ready{URL: site.URL(), User: simsite.User, Thumbprint: site.Thumbprint(), Control: site.Control(), Catalog: site.Catalog(), Dir: site.Dir(),
		Computers: len(site.Computers())})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "%s\n", line); err != nil {
		return err
	}
	<-site.Done()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("the site ended by itself: %w", site.Err())
}

// lock keeps a second site out of the folder. The lock ends with the process.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another simsite runs in %s: end it, or give another --dir", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { file.Close() }, nil
}

func readScript(file string, computers int) (*simsite.Script, error) {
	switch {
	case file == "" && computers > 0:
		return nil, nil
	case file == "":
		return simsite.DemoScript()
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("script: %w", err)
	}
	return simsite.ParseScript(file, text)
}

func checkCommand(out io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a script whole, and say what it holds",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			script, err := readScript(args[0], 0)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(out, "%s: %d templates, %d images, %d computers\n", args[0], len(script.Templates), len(script.Images), len(script.Computers))
			return err
		},
	}
}

// readyLimit bounds a look at the control API.
const readyLimit = 5 * time.Second

func readyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ready URL",
		Short: "Say whether the site whose control API is at a URL serves, by the exit code: for health checks",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), readyLimit)
			defer cancel()
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(args[0], "/")+"/status", nil)
			if err != nil {
				return err
			}
			answer, err := http.DefaultClient.Do(request)
			if err != nil {
				return err
			}
			defer answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				return fmt.Errorf("%s answers %s", request.URL, answer.Status)
			}
			return nil
		},
	}
}
