package commands

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"berth/internal/catalog"
)

// completeLimit is how long somebody who presses the tab key waits for names from Temporal.
const completeLimit = time.Second

// completeReserve completes an image, then computers.
func (s *session) completeReserve(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if cmd.Flags().Changed("file") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if len(args) == 0 {
		return s.completeImages(cmd, args, begun)
	}
	names, directive := s.completeComputers(cmd, args, begun)
	return without(names, args), directive
}

func (s *session) completeImages(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if c := s.completionCatalog(); c != nil {
		for _, image := range c.Images {
			names = append(names, image.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}

func (s *session) completeComputers(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if c := s.completionCatalog(); c != nil {
		for _, computer := range c.Computers {
			names = append(names, computer.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completionCatalog returns the catalog; nil if there is none or it has faults. Completion never complains: it would
// write into the line that somebody is typing.
func (s *session) completionCatalog() *catalog.Catalog {
	path := s.catalogFile()
	if path == "" {
		return nil
	}
	found, err := catalog.Load(path, catalog.Options{Validators: s.Validators})
	if err != nil {
		return nil
	}
	return found
}

// completeNames completes names of live reservations and of their computers, up to most arguments; -1 is any number.
func (s *session) completeNames(most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeLimit)
		defer cancel()
		l, err := s.ledger(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names, computers, err := l.names(ctx, liveQuery(), defaultMost)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all := append(names, computers...)
		slices.Sort(all)
		return without(slices.Compact(all), args), cobra.ShellCompDirectiveNoFileComp
	}
}

func without(names, taken []string) []string {
	return slices.DeleteFunc(names, func(name string) bool { return slices.Contains(taken, name) })
}
