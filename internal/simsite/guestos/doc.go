// Package guestos is a simulated Linux guest: a file system, a POSIX shell with a closed set of commands, and the state
// that those commands read and change (host name, firewall, services, passwords, clock, boot).
//
// Everything lives in memory. No path, command, user or environment variable of the machine that runs the simulation is
// reachable from a script: the file system is a tree of nodes, commands are Go functions, and the shell interpreter's
// own look-ups on the host are cut off (see shell.go). Guests of one image share its files until they write to them, so
// a guest that only waits costs next to nothing.
package guestos
