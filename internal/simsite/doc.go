// Package simsite is a simulated site: a vCenter (govmomi's simulator behind real TLS, with user and password checked)
// and a guest for each VM that follows the VM's power state and speaks real SSH on a loopback address. A script says how
// each computer and the vCenter behave: late, silent, rebooting, a wrong key, clones that fail. Tests use it in-process
// (Start); the demonstration and Compose run it as a program of its own (simsite serve).
//
// A Linux guest's files, commands and shell are those of package guestos. A Windows guest is one of package winos: it
// speaks SSH or WinRM, and sets itself up on a script (Behaviour.Setup) as a Windows does after Sysprep. Nothing of the
// machine that runs the simulation can be reached from a guest.
package simsite
