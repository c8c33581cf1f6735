package main

import (
	"os"

	"github.com/mattn/go-isatty"
)

func isTerminal(file *os.File) bool { return isatty.IsTerminal(file.Fd()) }
