// Package e2e holds the end-to-end tests: the programs as a person starts them, seen as a person sees them. They are
// built with the tag e2e; `make e2e` installs what they need and runs them.
package e2e
