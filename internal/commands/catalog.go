package commands

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"berth/internal/catalog"
)

// catalogAnswer is what `catalog check -o json` writes.
type catalogAnswer struct {
	File      string         `json:"file"`
	Sites     int            `json:"sites"`
	Images    int            `json:"images"`
	Computers int            `json:"computers"`
	Faults    []catalogFault `json:"faults"`
}

type catalogFault struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Field  string `json:"field"`
	Value  string `json:"value,omitempty"`
	Remedy string `json:"remedy"`
}

func (s *session) checkCatalog() *cobra.Command {
	parent := &cobra.Command{
		Use:   "catalog",
		Short: "Check the catalog of computers and images",
		Args:  cobra.ArbitraryArgs,
		RunE:  group,
	}
	check := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a catalog, and list every fault with its file and line",
		Long: `Check a catalog, and list every fault with its file and line. The exit code is 2 if there is one.

Without FILE the one of --catalog or BERTH_CATALOG is checked. No secret is read and nothing is connected to.`,
		Example: "  starter catalog check site/catalog.yaml",
		Args:    exactly("one FILE at most", 0, 1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(_ *cobra.Command, args []string) error {
			path := s.catalogFile()
			if len(args) == 1 {
				path = args[0]
			}
			if path == "" {
				return &Failure{Code: CodeInput, Text: "which catalog?", Hint: "give its file, or set --catalog or " + EnvCatalog}
			}
			return s.runCheckCatalog(path)
		},
	}
	parent.AddCommand(check)
	return parent
}

func (s *session) runCheckCatalog(path string) error {
	found, err := catalog.Load(path, catalog.Options{Validators: s.Validators})
	answer := catalogAnswer{File: path, Faults: []catalogFault{}}
	if err == nil {
		answer.Sites, answer.Images, answer.Computers = len(found.Sites), len(found.Images), len(found.Computers)
	}
	var faults *catalog.Error
	if errors.As(err, &faults) {
		for _, fault := range faults.Faults {
			answer.Faults = append(answer.Faults, catalogFault{File: fault.File, Line: fault.Line, Field: fault.Field, Value: fault.Value, Remedy: fault.Remedy})
		}
	} else if err != nil {
		return err
	}
	if s.json() {
		if err := s.writeJSON(answer); err != nil {
			return err
		}
	}
	if len(answer.Faults) > 0 {
		if !s.json() {
			for _, fault := range faults.Faults {
				if _, err := fmt.Fprintln(s.Stdout, fault); err != nil {
					return err
				}
			}
		}
		return &Failure{Code: CodeInput, Text: fmt.Sprintf("%s in %s", counted(len(answer.Faults), "fault"), path)}
	}
	if s.json() {
		return nil
	}
	_, err = fmt.Fprintf(s.Stdout, "%s: no faults; %s, %s, %s\n", path, counted(answer.Sites, "site"), counted(answer.Images, "image"), counted(answer.Computers, "computer"))
	return err
}
