// Package rooms holds no code but a test: the rules of which package may import which, and of the house's style, that a
// compiler does not check.
package rooms
