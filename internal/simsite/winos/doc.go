// Package winos is a simulated Windows guest: a small machine (registry, services, files, users, processes, firewall,
// network, clock, boot time) and a set-up after Sysprep that passes through its states on a script, with the faults that
// real ones have.
//
// It runs no PowerShell. It knows the scripts of the module for Windows by name and by the digest of their text, and acts
// out what each of them does. A script whose text it does not know is answered with an error and counted, so that
// nobody can change a script without its simulation.
//
// Everything lives in memory; nothing of the machine that runs the simulation can be reached from a guest.
package winos
