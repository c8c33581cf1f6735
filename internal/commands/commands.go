// Package commands is Berth's command line: it reserves, shows and ends reservations. It reads no environment and no
// flags of the process by itself: a main package hands it everything.
package commands

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/interceptor"
	"golang.org/x/term"

	"berth/internal/catalog"
	"berth/internal/loadlog"
	"berth/internal/temporalclient"
	"berth/provisioners"
)

// Name is what the command line calls itself in its texts.
const Name = "starter"

// Environment variables that the command line reads through Tools.Env, beside those of Temporal's connection.
const (
	EnvCatalog = "BERTH_CATALOG"
	EnvUser    = "BERTH_USER"
)

// Tools are what a command line runs with.
type Tools struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Env    func(name string) string // "" for what is not set
	Now    func() time.Time         // in the location that times are read and written in

	Temporal temporalclient.Settings // where Temporal is, unless flags say otherwise
	// Interceptors are what the client of Temporal is made with; nil is none.
	Interceptors []interceptor.ClientInterceptor
	// Dial connects to Temporal; nil is temporalclient.Dial.
	Dial func(context.Context, temporalclient.Options) (client.Client, error)
	// Validators check what only a provisioner understands of a catalog, by provisioner type.
	Validators map[string]provisioners.Validator
	// Terminal returns the width and height of the terminal that w is, and false if it is none; nil asks the system.
	Terminal func(w io.Writer) (width, height int, ok bool)
}

// Run runs one command and returns the process's exit code.
func (t Tools) Run(ctx context.Context, args []string) int {
	if t.Terminal == nil {
		t.Terminal = systemTerminal
	}
	if t.Dial == nil {
		t.Dial = temporalclient.Dial
	}
	s := &session{Tools: t}
	defer s.close()
	root := s.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return CodeOK
	}
	f := s.explain(ctx, err)
	s.complain(f)
	return f.Code
}

// session is one run of the command line.
type session struct {
	Tools
	address     string // of Temporal, as a flag says
	namespace   string
	catalogPath string
	output      string

	client client.Client
}

func (s *session) close() {
	if s.client != nil {
		s.client.Close()
	}
}

func (s *session) root() *cobra.Command {
	root := &cobra.Command{
		Use:   Name,
		Short: "Reserve computers, watch them being loaded, and give them back",
		Long: `Reserve computers, watch them being loaded, and give them back.

A reservation is one durable workflow in Temporal. It loads an image onto a computer, configures it, holds it until its
end, a release or a cancel, and takes it back. Closing this program stops none of that.

NAME is a reservation's name or a computer's name (the computer's last reservation is meant). Both are told apart by
themselves: a reservation cannot be named like a computer of the catalog.`,
		Example: `  starter reserve debian12 vm-01 --for 4h --wait
  starter list
  starter show vm-01
  starter release vm-01`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return wrongName("command", args[0], commandNames(cmd), "see "+Name+" --help")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if s.output != outputTable && s.output != outputJSON {
				return wrongName("output format", s.output, []string{outputTable, outputJSON}, "write -o table or -o json")
			}
			return nil
		},
	}
	root.SetHelpTemplate(root.HelpTemplate() + "{{if not .HasParent}}\n" + environmentHelp + "\n" + codesHelp() + "{{end}}")
	root.SetFlagErrorFunc(wrongFlag)
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	flags := root.PersistentFlags()
	flags.StringVar(&s.catalogPath, "catalog", "", "the catalog's `FILE` (default $"+EnvCatalog+")")
	flags.StringVar(&s.address, "address", "", "Temporal's `HOST:PORT` (default $BERTH_TEMPORAL_ADDRESS)")
	flags.StringVar(&s.namespace, "namespace", "", "Temporal's `NAMESPACE` (default $BERTH_TEMPORAL_NAMESPACE)")
	flags.StringVarP(&s.output, "output", "o", outputTable, "the `FORMAT`: table or json")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outputTable, outputJSON}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(s.reserve(), s.list(), s.show(), s.watch(), s.extend(), s.release(), s.cancel(), s.history(), s.checkCatalog(), s.version())
	root.SetIn(s.Stdin)
	root.SetOut(s.Stdout)
	root.SetErr(s.Stderr)
	root.InitDefaultCompletionCmd() // which keeps the output that it finds here
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.Args, c.RunE = cobra.ArbitraryArgs, group
		}
	}
	return root
}

const environmentHelp = `Environment:
  BERTH_CATALOG            the catalog's file
  BERTH_USER               whose reservations these are (otherwise USER, then LOGNAME)
  BERTH_TEMPORAL_ADDRESS   Temporal's host:port (default 127.0.0.1:7233)
  BERTH_TEMPORAL_NAMESPACE its namespace (default "default")
  BERTH_TEMPORAL_TLS_*     CA, CERT, KEY and SERVER_NAME: PEM files and the name to check, as for the worker
  BERTH_TEMPORAL_PATIENCE  how long it is waited for (default 3s)
  TEMPORAL_PROFILE, ...    Temporal's own profiles, where nothing above names the address
  OTEL_EXPORTER_OTLP_*     OpenTelemetry's variables: where traces go
  NO_COLOR                 anything but empty: no colours (there are none either where the output is no terminal)
`

func commandNames(parent *cobra.Command) []string {
	var names []string
	for _, c := range parent.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return names
}

func wrongFlag(cmd *cobra.Command, err error) error {
	hint := "see " + cmd.CommandPath() + " --help"
	const unknown = "unknown flag: --"
	if name, ok := strings.CutPrefix(err.Error(), unknown); ok {
		if near := catalog.Nearest(name, flagNames(cmd)); near != "" {
			hint = "did you mean --" + near + "?"
		}
	}
	return &Failure{Code: CodeInput, Text: err.Error(), Hint: hint, Cause: err}
}

// exactly checks the number of a command's arguments in words of its own.
func exactly(what string, least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		text := "needs " + what
		if len(args) > least {
			text = fmt.Sprintf("takes %s, and got %d arguments", what, len(args))
		}
		return &Failure{Code: CodeInput, Text: cmd.CommandPath() + " " + text, Hint: "usage: " + cmd.UseLine()}
	}
}

// group runs a command that only has commands below it.
func group(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return wrongName("command", args[0], commandNames(cmd), "see "+cmd.CommandPath()+" --help")
	}
	return cmd.Help()
}

// style returns how to write to w now.
func (s *session) style(w io.Writer) loadlog.Style {
	_, _, terminal := s.Terminal(w)
	return loadlog.Style{Now: s.Now(), Colour: terminal && s.Env("NO_COLOR") == "" && s.Env("TERM") != "dumb"}
}

// catalogFile returns the path of the catalog; "" if nobody has said it.
func (s *session) catalogFile() string {
	if s.catalogPath != "" {
		return s.catalogPath
	}
	return s.Env(EnvCatalog)
}

func (s *session) loadCatalog() (*catalog.Catalog, error) {
	path := s.catalogFile()
	if path == "" {
		return nil, &Failure{Code: CodeInput, Text: "no catalog: it says which computers and images there are",
			Hint: "name its file with --catalog or " + EnvCatalog}
	}
	found, err := catalog.Load(path, catalog.Options{Validators: s.Validators})
	if err != nil {
		return nil, &Failure{Code: CodeInput, Text: "the catalog has faults:\n" + indented(err.Error()),
			Hint: "correct them, then look again: " + Name + " catalog check " + path, Cause: err}
	}
	return found, nil
}

func indented(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
}

// systemTerminal is Tools.Terminal by the operating system.
func systemTerminal(w io.Writer) (width, height int, ok bool) {
	file, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(file.Fd())) {
		return 0, 0, false
	}
	width, height, err := term.GetSize(int(file.Fd()))
	if err != nil || width < 1 || height < 1 {
		return 80, 24, true
	}
	return width, height, true
}
